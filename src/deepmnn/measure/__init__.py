"""Speed, accuracy and size of models."""
