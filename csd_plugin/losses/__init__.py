"""Losses that the package adds to BasicSR."""
