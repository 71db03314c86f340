"""Is every special op of a model what its config.json defines? One file for each kind of check."""
