"""deepmnn's server under load, beside `llama-server`: see bench/README.md."""
