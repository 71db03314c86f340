"""Looking into models: node counts and memory."""
