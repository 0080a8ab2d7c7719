"""The default configuration, which every config file modifies.

Fields, defaults, ranges and descriptions are declared in dasd_jax/config.py and, for each method, in dasd_jax/methods;
`--help-config` and docs/fields.md list them.
"""

import ml_collections

from dasd_jax.config import defaults


def base(method: str = "dasd") -> ml_collections.ConfigDict:
    """The default config groups of a method, locked: setting an unknown name is an error."""
    config = ml_collections.ConfigDict(defaults(method))
    # Not a config field: if --config.objective.method differs, it shows which values the file has changed.
    object.__setattr__(config, "base_method", method)
    return config.lock()
