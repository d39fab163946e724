"""Option files: reading (`load`), their schema (`schema`) and the checks before a run starts (`preflight`)."""
