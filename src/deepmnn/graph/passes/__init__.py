"""Graph passes: one rewrite per file, each with `run(graph) -> int`; see graph/levels.py."""
