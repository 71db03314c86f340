"""What must be switched off for a model to give the reference's answers again."""
