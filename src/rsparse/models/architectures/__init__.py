"""One file a model type, found by its name."""
