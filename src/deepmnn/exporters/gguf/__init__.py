"""Any model → a GGUF file for llama.cpp."""
