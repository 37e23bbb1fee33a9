"""A keep's output from the guest's write to its readers: the loader's side in a thread, the manager's in this loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

import keep_manager.keeps.streams as output_module
from keep_loader.loop import READABLE, Loop
from keep_loader.output import Output
from keep_manager.keeps.streams import KeepOutput
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import MIN_CAPACITY, STDERR, STDOUT, Acknowledgement, RingWriter, frames_in


class LoaderThread:
    """The loader's side: a guest program, its pipes and the ring. `ended` is set when the guest has."""

    def __init__(self, program: str, *, drops_oldest: bool = False) -> None:
        self.ring = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
        self._loop = Loop()
        self.output = Output(
            self._loop, RingWriter.create(self.ring, MIN_CAPACITY), journal=None, drops_oldest=drops_oldest
        )
        self._program = program
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def attach(self) -> socket.socket:
        """A new channel; the manager's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._orders, [b"attach"], [theirs.fileno()])
        return ours

    def go(self) -> None:
        """Starts the guest."""
        self._orders.send(b"go")

    def close(self) -> None:
        self._orders.close()
        self._thread.join()
        os.close(self.ring)

    def _run(self) -> None:
        self._loop.watch(self._theirs.fileno(), READABLE, self._obey)
        self._loop.run()
        self.output.close()
        self._theirs.close()

    def _obey(self, _events: int) -> None:
        order, descriptors, _, _ = socket.recv_fds(self._theirs, 16, 1)
        if order == b"attach":
            self.output.attach(socket.socket(fileno=descriptors[0]))
        elif order == b"go":
            out, err = self.output.open()
            guest = subprocess.Popen([sys.executable, "-c", self._program], stdout=out, stderr=err)
            os.close(out)
            os.close(err)
            waiter = os.pidfd_open(guest.pid)
            self._loop.watch(waiter, READABLE, lambda _: self._guest_ended(guest, waiter))
        else:
            self._loop.stop()

    def _guest_ended(self, guest: subprocess.Popen[bytes], waiter: int) -> None:
        self._loop.forget(waiter)
        os.close(waiter)
        guest.wait()
        self.output.finish(self.ended.set)


@contextmanager
def loader(program: str, *, drops_oldest: bool = False) -> Iterator[LoaderThread]:
    made = LoaderThread(program, drops_oldest=drops_oldest)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def output_of(made: LoaderThread) -> AsyncIterator[KeepOutput]:
    output = KeepOutput(7, os.dup(made.ring))
    output.attach(made.attach())
    try:
        yield output
    finally:
        output.close()


class Collector:
    """Reads one stream of a keep's output; `missing` counts the bytes that its offsets say it has not seen."""

    def __init__(self, stream: int = STDOUT) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = self.missing = 0

    async def collect(self, output: KeepOutput, made: LoaderThread, *, holds: bool = True) -> None:
        async with output.reading(holds=holds) as reader:
            while True:
                ended = made.ended.is_set()  # before the look: what was written before the end is seen after it
                block = output.take(reader)
                if block is not None:
                    for frame in frames_in(block.data, block.position):
                        if frame.stream == self._stream:
                            self.missing += frame.offset - self.size - self.missing
                            self.digest.update(frame.data)
                            self.size += len(frame.data)
                    output.sent(reader, block)
                    await asyncio.sleep(0)
                elif ended:
                    return
                else:
                    with suppress(TimeoutError):  # the guest's end wakes no reader here, as it does in the manager
                        await asyncio.wait_for(output.more(), 0.05)


FLOOD = """
import os
for number in range(400):
    os.write(1, bytes([number % 251]) * 65536)
os.write(2, b"last words")
"""
FLOOD_DIGEST = hashlib.sha256(b"".join(bytes([number % 251]) * 65536 for number in range(400))).hexdigest()
FLOOD_BYTES = 400 * 65536


async def test_a_reader_that_holds_gets_every_byte_of_a_flood() -> None:
    with loader(FLOOD) as made:
        async with output_of(made) as output:
            collector, errors = Collector(), Collector(STDERR)
            async with asyncio.TaskGroup() as group:
                group.create_task(collector.collect(output, made))
                group.create_task(errors.collect(output, made))
                await asyncio.sleep(0)
                made.go()
            assert (collector.size, collector.missing) == (FLOOD_BYTES, 0)
            assert collector.digest.hexdigest() == FLOOD_DIGEST
            assert errors.digest.hexdigest() == hashlib.sha256(b"last words").hexdigest()
            assert made.output.lost == [0, 0]


async def test_the_guest_waits_for_a_reader_that_holds_and_not_for_one_that_does_not() -> None:
    with loader(FLOOD) as made:
        async with output_of(made) as output:
            async with output.reading(holds=True) as reader:
                made.go()
                await output.more()
                while not made.output._paused:  # noqa: ASYNC110 - the loader is another thread, and signals nothing
                    await asyncio.sleep(0)
                assert not made.ended.is_set()
                assert reader.position == 0
            await asyncio.to_thread(made.ended.wait)


async def test_without_a_reader_the_guest_does_not_wait_and_what_was_not_read_is_counted() -> None:
    with loader(FLOOD) as made:
        async with output_of(made) as output:
            made.go()
            await asyncio.to_thread(made.ended.wait)
            late = Collector()
            await late.collect(output, made)
            assert late.size + late.missing == FLOOD_BYTES
            assert made.output.lost == [late.missing, 0]


async def test_a_reader_that_does_not_hold_knows_exactly_what_it_missed() -> None:
    with loader(FLOOD, drops_oldest=True) as made:
        async with output_of(made) as output:
            collector = Collector()
            made.go()
            await collector.collect(output, made, holds=False)
            assert collector.size + collector.missing == FLOOD_BYTES
            assert made.output.lost[1] == 0


async def test_a_reader_that_takes_nothing_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "STALL_SECONDS", 0.05)
    with loader(FLOOD) as made:
        async with output_of(made) as output, output.reading(holds=True) as reader:
            made.go()
            with output.sending(reader):
                await asyncio.to_thread(made.ended.wait)
            assert reader.stalled


async def test_another_manager_goes_on_where_it_is_asked_to() -> None:
    with loader(FLOOD) as made:
        collector = Collector()
        async with output_of(made) as first, first.reading(holds=True) as reader:
            made.go()
            while first.take(reader) is None:
                await first.more()
        async with output_of(made) as second:
            await collector.collect(second, made)
        assert collector.size + collector.missing == FLOOD_BYTES


async def test_a_loader_that_is_gone_ends_the_waiting() -> None:
    with loader("") as made:
        output = KeepOutput(7, os.dup(made.ring))
        channel = made.attach()
        output.attach(channel)
        async with output.reading() as reader:
            assert output.take(reader) is None
            waiting = asyncio.ensure_future(output.more())
            await asyncio.sleep(0)
            made._orders.send(b"stop")
            await waiting
        output.close()


async def test_a_quiet_keep_wakes_no_reader() -> None:
    with loader("") as made:
        async with output_of(made) as output, output.reading(holds=True) as reader:
            assert output.take(reader) is None
            woken = asyncio.ensure_future(output.more())
            done, _ = await asyncio.wait([woken], timeout=0.1)
            assert not done
            woken.cancel()


async def test_a_loader_that_floods_tokens_is_not_listened_to_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "TOKENS_PAUSE_SECONDS", 3600.0)
    ring = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    RingWriter.create(ring, MIN_CAPACITY)
    output = KeepOutput(7, ring)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output.attach(ours)
    theirs.setblocking(False)
    wakes = 0
    for _ in range(50):
        try:
            while True:
                theirs.send(b"\1")
        except BlockingIOError:
            pass
        waiting = asyncio.ensure_future(output.more())
        done, _ = await asyncio.wait([waiting], timeout=0.005)
        wakes += len(done)
        waiting.cancel()
    assert 0 < wakes < 25
    output.close()
    theirs.close()


async def test_too_many_readers_and_places_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "MAX_READERS", 1)
    with loader("") as made:
        async with output_of(made) as output:
            async with output.reading():
                with pytest.raises(KeepfleetError) as refused:
                    async with output.reading():
                        pass
                assert refused.value.kind is ErrorKind.TOO_MANY
            with pytest.raises(KeepfleetError) as refused:
                async with output.reading(1):
                    pass
            assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_an_acknowledgement_of_another_size_hangs_up_and_the_guest_goes_on() -> None:
    loop = Loop()
    with tempfile.TemporaryFile() as opened:
        output = Output(loop, RingWriter.create(opened.fileno(), MIN_CAPACITY), None, drops_oldest=False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output.attach(ours)
        theirs.send(Acknowledgement(kept=0).encode())
        output._answered(0)
        assert output._acknowledged.kept == 0
        theirs.send(b"nonsense")
        output._answered(0)
        assert output._channel is None
        assert output._ring.room(output._acknowledged.kept) > 0
        theirs.close()
        output.close()
