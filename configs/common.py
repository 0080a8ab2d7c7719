"""The default configuration, which every config file starts from and changes.

Fields, defaults, ranges and meanings are declared in dasd_jax/config.py and, of each method, in dasd_jax/methods;
`--help-config` and docs/fields.md show them.
"""

import ml_collections

from dasd_jax.config import defaults


def base(method: str = "dasd") -> ml_collections.ConfigDict:
    """The groups of a run of this method with their defaults, locked: a name that does not exist is an error."""
    config = ml_collections.ConfigDict(defaults(method))
    # No field: with another --config.objective.method it tells what the file has changed from what it has left.
    object.__setattr__(config, "base_method", method)
    return config.lock()
