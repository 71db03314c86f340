"""Backends: what runs a graph, and what lowers it to the program of the C++ core."""
