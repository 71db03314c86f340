"""deepmnn beside its peers on this machine: `python -m bench.peers`; bench/README.md has the rest.

An engine is one module of this package, with the names of `engine.Engine`. Everything an engine
does happens in a process of its own (`worker`), under the interpreter that it is installed in.
"""
