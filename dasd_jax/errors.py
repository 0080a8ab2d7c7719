"""The two ways in which a command ends with one line instead of a traceback."""


class UserError(Exception):
    """A mistake that a person can mend: one line that names the field, the value and what was expected.

    Every command turns it into that line on stderr and exit code 2, without a traceback (see `dasd_jax.cli`).
    """


class TrainingError(Exception):
    """A run that cannot go on, for a reason that its numbers show: one line that says which and what to change.

    Exit code 1; the last checkpoint is from before it.
    """
