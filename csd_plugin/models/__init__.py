"""Models (training procedures) that the package adds to BasicSR."""
