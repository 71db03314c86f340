"""A model in the formats of others: MNN's folder and a phone's project, Hugging Face, GGUF."""
