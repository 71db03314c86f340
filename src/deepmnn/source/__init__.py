"""Reads what users bring: config.json and weights, decoded to float32 one tensor at a time."""
