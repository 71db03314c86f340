"""A page about a model: its graph, sizes, errors, speed and memory."""
