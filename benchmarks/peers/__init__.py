"""The libraries that one would pick instead, on the same work in turn with ours: ``python -m benchmarks.peers``."""
