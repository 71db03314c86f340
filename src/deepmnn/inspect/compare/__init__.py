"""Two runs of one model, value by value: where they part, and what that does to the answer."""
