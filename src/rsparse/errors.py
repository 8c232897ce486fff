"""The one exception that a user is meant to read."""


class RSparseError(Exception):
    """A mistake of the caller or of the machine that one line explains; the command line exits with 2."""
