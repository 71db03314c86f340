"""Checkpoint → artifact."""
