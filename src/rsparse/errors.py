"""The exceptions that a user is meant to read."""


class RSparseError(Exception):
    """A mistake of the caller or of the machine that one line explains; the command line exits with 2."""


class RefusedError(RSparseError):
    """A method cannot do what is asked on this model or under this token policy, and never will: a finding, not a fault."""
