"""The two exceptions that end a command with one line instead of a traceback."""

_MAX_CHARS = 2000


class UserError(Exception):
    """An error that the user can fix: one line that names the field, the value and what was expected.

    Every command prints it to stderr without a traceback and exits with code 2 (see `dasd_jax.cli`). Values may come
    from untrusted files, so unprintable characters are escaped, and the middle of an overlong line is left out.
    """

    def __init__(self, message: str):
        """Keeps the message as one printable line."""
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(message.splitlines()))
        half = _MAX_CHARS // 2
        super().__init__(line if len(line) <= _MAX_CHARS else f"{line[:half]} … {line[-half:]}")


class TrainingError(Exception):
    """A run that cannot continue: one line that names the metric or cause and what to change.

    Exit code 1; the last checkpoint precedes the failure.
    """
