"""The environment of what the loader starts: built here, word by word, and nothing of it inherited.

Pure. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.keep import Keep
from keep_loader.settings import Settings


def door_environment(settings: Settings, keep: Keep, has_identity: bool) -> dict[str, str]:
    """What the app-loader is told; `has_identity` says that a former door's key and certificate are handed over."""
    return {
        **runner_environment(settings),
        "KEEPFLEET_KUUID": str(settings.kuuid),
        "KEEPFLEET_ADDRESS": keep.address,
        "KEEPFLEET_PORT": str(keep.port),
        "KEEPFLEET_NAMES": keep.names,
        "KEEPFLEET_HAS_IDENTITY": "1" if has_identity else "0",
        "KEEPFLEET_OPENSSL": settings.openssl,
        "KEEPFLEET_MAX_WORKLOAD": str(settings.max_workload),
    }


def runner_environment(settings: Settings) -> dict[str, str]:
    """What a runner is told that is started without a door before it."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "KEEPFLEET_RUNTIME_DIRECTORY": settings.directory,
        "KEEPFLEET_LIMITS": settings.limits.to_text(),
    }
