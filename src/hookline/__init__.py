"""Placeholder until the public API is frozen."""
