"""Tables and pictures of recipes and results."""
