"""The sides of a comparison: one file for each backend."""
