"""DeepSeek models from checkpoint to phone and server."""
