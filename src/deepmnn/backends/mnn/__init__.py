"""MNN: a graph as an .mnn model, and the wheel that builds and runs it."""
