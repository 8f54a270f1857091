"""Shared state: three small protocols (protocols.py) and their implementations, one folder file per backend."""
