"""Refuses secrets in user input: a command line, a config file, a file of flags."""

import os
import re
from collections.abc import Iterable

from dasd_jax.errors import UserError

# A name that ends like this names a secret, and these are the shapes of well-known ones.
_SECRET_NAME = r"[A-Z0-9_]*(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)"
_SECRET_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[opsu]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bsk-[\w-]{16,}|\bAKIA[A-Z0-9]{12,}"
    r"|\bAIza[\w-]{16,}|\bya29\.[\w-]{16,}|\beyJ[\w-]+\.eyJ[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:[^/\s@]+@"  # a password in an address
    r"|[?&](?:access_token|token|api_key|sig|signature|x-goog-signature|x-amz-signature)=",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # characters; a shorter value of a variable stands in other words by chance


def refuse_secrets(words: Iterable[str], where: str = "the command line") -> None:
    """Lets no secret in, so that config.json, logs, reports and dry runs have none to write.

    Secret is the value of an environment variable whose name ends in TOKEN, KEY, SECRET, PASSWORD or CREDENTIALS, an
    assignment to such a name, and what has the shape of a well-known token, a private key, or an address with a
    password or a signature.

    Raises:
        UserError: there is one; it is not repeated.
    """
    values = [
        value
        for name, value in os.environ.items()
        if re.fullmatch(_SECRET_NAME, name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    ]
    for word in words:
        named = re.search(rf"(?<!\w){_SECRET_NAME}=", word)
        # The launcher's flag names a variable; a value after it is refused there.
        named = named and not word.startswith("--secret=")
        if named or _SECRET_SHAPE.search(word) or any(value in word for value in values):
            raise UserError(
                f"a secret is in {where}: expected it only in the environment "
                "(launchers.tpu_vm: --secret=VARIABLE, without its value)"
            )
