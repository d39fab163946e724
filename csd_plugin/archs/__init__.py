"""Networks that the package adds to BasicSR."""
