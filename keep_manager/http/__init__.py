"""The manager's HTTPS: one table of routes with who may use them, the original's commands and /v1.

aiohttp's client comes with its server, and reads all of the host's CA certificates when it is imported: a sixth of the
processor time of a manager's start, and 2.5 MB. No connection of the manager's trusts these, so it is shown none.
"""

from __future__ import annotations

import os

_NONE = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Where OpenSSL looks for those certificates (man 3 SSL_CTX_set_default_verify_paths)."""
_before = {name: os.environ.get(name) for name in _NONE}
os.environ.update(_NONE)
try:
    import aiohttp  # noqa: F401 - for what else imports it
finally:
    for _name, _value in _before.items():
        if _value is None:
            del os.environ[_name]
        else:
            os.environ[_name] = _value
