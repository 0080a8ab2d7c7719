"""The two ways in which a command ends with one line instead of a traceback."""

_MAX_CHARS = 2000


class UserError(Exception):
    """A mistake that a person can mend: one line that names the field, the value and what was expected.

    Every command turns it into that line on stderr and exit code 2, without a traceback (see `dasd_jax.cli`). Values
    come from files of strangers, so what a terminal would not print as it stands is escaped, and the middle of a line
    longer than a screen is left out.
    """

    def __init__(self, message: str):
        """Keeps the message as one printable line."""
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(message.splitlines()))
        half = _MAX_CHARS // 2
        super().__init__(line if len(line) <= _MAX_CHARS else f"{line[:half]} … {line[-half:]}")


class TrainingError(Exception):
    """A run that cannot go on, for a reason that its numbers show: one line that says which and what to change.

    Exit code 1; the last checkpoint is from before it.
    """
