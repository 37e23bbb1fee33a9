"""`POST /v1/pools`: a script pool that is asked for, checked field by field, and the keep that serves it. Pure."""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.api import AskedLimits, NewKeep, StartKeep
from keep_protocol.api_workload import WorkloadRequest
from keep_protocol.constants import LAST_KEEP_PORT, MAX_MANAGER_BODY
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Whole, field, parse, table_of
from keep_protocol.pools import PoolOptions
from keep_protocol.spec import LABELS, MAX_UPLOADERS, NAME, UPLOADER, Kind, Labels, Lease, OutputPolicy
from keep_protocol.workload import Workload


class NewPool(Record):
    """A pool for `owner`'s scripts, in a keep of its own, listening from its creation on.

    callers: who may add scripts to it and run them; empty for its owner alone.
    """

    name: str = field(NAME, default="", about="1 to 63 of a-z, 0-9 and -, or empty; one living keep of an owner has it")
    labels: Labels = field(LABELS, default=(), about="what it can be found by")
    limits: tuple[tuple[str, int], ...] = field(AskedLimits(), default=(), about="what all of it may use together")
    callers: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may use it: names and fingerprints; empty: its owner"
    )
    replace_living: bool = field(
        Flag(), default=False, name="replace", about="end the caller's living keep of that name first"
    )
    options: PoolOptions = field(
        Nested(PoolOptions, "options", strict=True), default=PoolOptions(), about="its size, and what a run may use"
    )
    address: str = field(
        table_of(StartKeep)["address"].type, default="127.0.0.1", about="an IPv4 or IPv6 address of the manager's host"
    )
    port: int | None = field(
        Maybe(Whole(1, LAST_KEEP_PORT)), default=None, about="null for the first free one of keep_ports"
    )
    names: tuple[str, ...] = field(
        table_of(StartKeep)["names"].type, default=(), about="for its certificate, besides the address"
    )

    def as_keep(self) -> NewKeep:
        """The keep that is made for it."""
        workload = WorkloadRequest(Workload(arguments=(self.options.to_text(),)))
        start = StartKeep(
            address=self.address, port=self.port, names=self.names, workload=workload, uploaders=self.callers
        )
        return NewKeep(
            name=self.name,
            labels=self.labels,
            limits=self.limits,
            lease=Lease(),  # it waits for requests as long as it lives
            uploaders=self.callers,
            replace_living=self.replace_living,
            start=start,
            kind=Kind.SCRIPTS,
            output=OutputPolicy.DROP_OLDEST,  # a reader who stands still holds no newer line back from the journal
        )


def parse_v1_pool(body: bytes) -> NewPool:
    """The body of `POST /v1/pools`, every member optional; or empty. Raises KeepfleetError(BAD_REQUEST or
    TOO_LARGE)."""
    value = strict_json.loads_object(body or b"{}", MAX_MANAGER_BODY, "the request")
    return parse(NewPool, value, "request", strict=True)
