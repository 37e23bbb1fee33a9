"""The one upload a door receives at a time: the client it comes from, its file, its checker and its pace."""

from __future__ import annotations

from app_loader.checking import Checking
from app_loader.exchange import Exchange
from app_loader.handover import Handover
from app_loader.limits import ACCESS_RECHECK_SECONDS, GRACE_SECONDS, MIN_BYTES_PER_SECOND
from app_loader.request import Wish
from app_loader.settings import Settings
from app_loader.workload import Workload
from keep_protocol.errors import ErrorKind, KeepfleetError


class Upload:
    """An upload from its headers to its verdict; `close` drops everything it holds."""

    def __init__(self, exchange: Exchange, wish: Wish, settings: Settings, given: Handover | None, now: float) -> None:
        """Raises KeepfleetError (NO_SPACE, INTERNAL), leaving nothing behind."""
        self.exchange = exchange
        self.workload = Workload(wish, settings.max_workload)
        description = None if given is None else given.descriptor
        try:
            self.checking = Checking(self.workload.descriptor, settings.limits, description)
        except KeepfleetError:
            self.workload.close()
            raise
        self._started = now
        self._body_bytes = 0
        self.recheck_at = now + ACCESS_RECHECK_SECONDS

    def __repr__(self) -> str:
        return f"Upload({self.workload!r})"

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the body. Raises KeepfleetError, see `Workload`."""
        self._body_bytes += len(data)
        self.workload.receive(data)

    def check_pace(self, now: float) -> None:
        """Raises KeepfleetError(TOO_SLOW) once the average has fallen below what is allowed."""
        if now - self._started > GRACE_SECONDS + self._body_bytes / MIN_BYTES_PER_SECOND:
            raise KeepfleetError(
                ErrorKind.TOO_SLOW,
                f"cannot take the upload: it comes at under {MIN_BYTES_PER_SECOND >> 10} KiB a second",
            )

    def whole(self, now: float) -> None:
        """The body has ended: the check begins. Raises KeepfleetError when the body is not whole."""
        self.workload.finish()
        self.exchange.hold()
        self.checking.go(now)

    def close(self) -> None:
        """Ends the checker and drops the files. May be called twice."""
        self.checking.close()
        self.workload.close()
