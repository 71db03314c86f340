"""Quantised schemes of checkpoints, one file each."""
