"""Any model → a plain Hugging Face directory."""
