"""How good a model is: perplexity, and closeness to the dense model."""
