"""deepmnn and its peers with less memory than the model; see bench/README.md."""
