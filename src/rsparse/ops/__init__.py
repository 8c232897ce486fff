"""What runs per token: reference.py is the specification, dispatch.py chooses."""
