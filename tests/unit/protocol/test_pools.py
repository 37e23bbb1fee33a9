"""What a script pool is asked for with, and the keep that is made of it."""

from __future__ import annotations

import pytest

from keep_protocol.api_pools import NewPool, parse_v1_pool
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pools import Console, PoolOptions, options_from_text
from keep_protocol.spec import Kind, Lease, OutputPolicy


def test_options_are_read_back_as_they_were_written() -> None:
    options = PoolOptions(min=0, max=16, time_ms=10, memory_bytes=8 << 20, console=Console.JOURNAL)
    assert options_from_text(options.to_text()) == options
    assert options_from_text('{"max":3}').console is Console.RETURN  # of a pool that was made before it could be said


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b'{"pool":1}', b'{"options":{"max":0}}', b'{"options":{"max":17}}', b'{"options":{"time_ms":9}}',
        b'{"options":{"min":3,"max":2}}', b'{"options":{"memory":1}}', b'{"callers":["bob"]}', b'{"port":0}',
        b'{"address":"nowhere"}', b'{"name":"A"}', b'{"kind":"scripts"}', b'{"options":{"console":"none"}}',
    ],
)  # fmt: skip
def test_what_no_pool_can_be_is_refused(body: bytes) -> None:
    with pytest.raises(KeepfleetError) as refused:
        parse_v1_pool(body)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_pool_is_a_keep_that_listens_and_is_never_ended_for_waiting() -> None:
    assert parse_v1_pool(b"") == NewPool()
    asked = parse_v1_pool(
        b'{"name":"rules","callers":["name:bob"],"options":{"max":3},"limits":{"memory_bytes":1048576}}'
    )
    keep = asked.as_keep()
    assert (keep.kind, keep.name, keep.uploaders, keep.lease) == (Kind.SCRIPTS, "rules", ("name:bob",), Lease())
    assert keep.output is OutputPolicy.DROP_OLDEST
    assert keep.start is not None
    assert keep.start.workload is not None
    (text,) = keep.start.workload.workload.arguments
    assert options_from_text(text).max == 3
