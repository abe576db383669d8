"""What ends a command with one line instead of a traceback."""


class BadInput(ValueError):
    """The caller asked for something impossible; the message names the argument, the value and the remedy."""


class CannotWrite(OSError):
    """The run directory does not take a file: full, read-only, in use. The message is one line."""


class CellFailed(RuntimeError):
    """A cell ended without a result, in a worker whose last words are on standard error."""
