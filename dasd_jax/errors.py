"""The one exception that a person's mistake raises."""


class UserError(Exception):
    """A mistake that a person can mend: one line that names the field, the value and what was expected.

    Every command turns it into that line on stderr and exit code 2, without a traceback (see `dasd_jax.cli`).
    """
