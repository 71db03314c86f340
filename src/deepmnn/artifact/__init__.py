"""A converted model on disk: its manifest, reading it, writing it."""
