"""How much accuracy deepmnn and its peers keep for the bytes that their weights take.

bench/README.md says how to run it and how to install the peers.
"""
