"""The graph: its form, its rules, what its weights are made of, and the passes over it."""
