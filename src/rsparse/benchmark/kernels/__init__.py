"""Time of a block's linears and MLP, as the decode step runs them, against dense products and TEAL's way."""
