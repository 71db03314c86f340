"""What each backend tells of a model's values."""
