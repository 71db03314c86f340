"""Where a model's answers, its time and its bytes come from."""
