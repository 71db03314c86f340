"""What users bring: a config, tensors that are read one at a time, and small files."""
