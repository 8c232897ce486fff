"""The exceptions that a user is meant to read, and which of others' mean that memory ran out."""


class RSparseError(Exception):
    """A mistake of the caller or of the machine that one line explains; the command line exits with 2."""


class RefusedError(RSparseError):
    """A method cannot do what is asked on this model or under this token policy, and never will: a finding, not a fault."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch says so of a GPU's by type; of a CPU's, the driver and CUDA's libraries by words."""
    words = str(error).lower().replace("_", " ")
    said = any(each in words for each in ("out of memory", "can't allocate memory", "status alloc failed"))
    return said or type(error).__name__ == "OutOfMemoryError"
