"""Loading a model and asking it."""
