"""The C++ engine as a backend: the graph lowered to its program, and the program run."""
