"""The upload endpoint: one poll loop over a few TLS connections that lets one workload in, and then is gone."""

from __future__ import annotations

import select
import sys
import time

from app_loader.check.checking import Checking
from app_loader.limits import (
    ACCESS_RECHECK_SECONDS,
    HANDOVER_SECONDS,
    HEADERS_SECONDS,
    READ_BYTES,
    STALL_SECONDS,
)
from app_loader.receive.access import ConnectionTable, UploadAccess
from app_loader.receive.exchange import Exchange, Gone, Stage
from app_loader.receive.http1 import Head
from app_loader.receive.requests import Route, error_answer, json_answer, read_request, text_answer
from app_loader.receive.upload import Upload
from app_loader.settings import Reporter, Settings
from keep_protocol import sockets as socket
from keep_protocol.certificate import CertificateFields
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Uploader
from keep_protocol.reports import Report, ReportType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import _SSLContext

RECEIVED = "Payload received"
"""The original's words."""
_TAKEN = "cannot take the upload: this keep {} another one; make a new keep"


def _log(line: str) -> None:
    """One line in the keep's journal."""
    print(f"app-loader: {line}", file=sys.stderr, flush=True)


def _shown(uploader: Uploader) -> str:
    return f"{uploader.name} (serial {uploader.serial})"


class Endpoint:
    """Serves until a workload is accepted, or the keep-loader is gone. `checks` is where the runner is asked."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        context: _SSLContext,
        access: UploadAccess,
        reporter: Reporter,
        checks: int,
    ) -> None:
        self._settings, self._reporter, self._checks = settings, reporter, checks
        self._listener: socket.socket | None = listener
        self._table = ConnectionTable(context, access)
        self._upload: Upload | None = None
        self._accepted = False
        self._closing_at: float | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        listener.setblocking(False)

    def __repr__(self) -> str:
        return f"Endpoint({len(self._table.exchanges)} connections, {self._upload!r})"

    def run(self) -> bool:
        """Whether a workload was accepted, and answered; false when the loader has gone instead."""
        try:
            while not self._finished(time.monotonic()):
                if not self._round():
                    break
            return self._accepted
        finally:
            self._table.close()
            if self._upload is not None:
                self._upload.close()
            if self._listener is not None:
                self._listener.close()

    def _finished(self, now: float) -> bool:
        if self._closing_at is None:
            return False
        waiting = [e for e in self._table.exchanges if e.stage in (Stage.ANSWERING, Stage.LINGERING)]
        return not waiting or now >= self._closing_at

    def _round(self) -> bool:
        """Waits for something and deals with it; False when the keep-loader has gone."""
        poll = select.poll()
        poll.register(self._reporter.descriptor, 0)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        checking = None if self._upload is None else self._upload.checking
        if checking is not None:
            poll.register(checking, select.POLLIN)
        by_descriptor = {e.fileno(): e for e in self._table.exchanges if e.interest}
        for descriptor, exchange in by_descriptor.items():
            poll.register(descriptor, exchange.interest)
        ready = {descriptor for descriptor, _ in poll.poll(self._patience(time.monotonic()))}
        if self._reporter.descriptor in ready:
            return False
        now = time.monotonic()
        answered = checking is not None and checking.fileno() in ready
        for descriptor in ready & by_descriptor.keys():
            self._advance(by_descriptor[descriptor], now)
        if checking is not None and self._upload is not None and self._upload.checking is checking and answered:
            self._checked(self._upload, checking, checking.refusal(), now)
        if self._listener is not None and self._listener.fileno() in ready:
            self._table.accept(self._listener, now)
        self._expire(now)
        self._table.remove_closed()
        return True

    def _patience(self, now: float) -> int | None:
        """Milliseconds until the next deadline."""
        deadlines = [e.deadline for e in self._table.exchanges if e.interest]
        if self._upload is not None:
            deadlines.append(self._upload.recheck_at)
            if self._upload.checking is not None:
                deadlines.append(self._upload.checking.deadline)
        if self._closing_at is not None:
            deadlines.append(self._closing_at)
        return max(0, int((min(deadlines) - now) * 1000) + 1) if deadlines else None

    def _advance(self, exchange: Exchange, now: float) -> None:
        if exchange.stage is Stage.CLOSED:
            return
        try:
            for event in exchange.advance(now, self._buffer):
                if exchange.stage is not Stage.BODY:
                    continue  # it was answered meanwhile
                if isinstance(event, Head):
                    self._begin(exchange, event, now)
                elif isinstance(event, bytes):
                    self._upload_of(exchange).receive(event)
                else:
                    self._table.check(exchange)
                    self._upload_of(exchange).complete(self._checks, now)
        except Gone:
            exchange.close()
            self._drop(exchange)
        except KeepfleetError as error:
            self._refuse(exchange, error, now)

    def _upload_of(self, exchange: Exchange) -> Upload:
        if self._upload is None or self._upload.exchange is not exchange:
            raise KeepfleetError(ErrorKind.INTERNAL, "cannot take the body: there is no upload it belongs to")
        return self._upload

    def _begin(self, exchange: Exchange, head: Head, now: float) -> None:
        uploader = self._table.check(exchange)
        wanted = read_request(head, self._settings.max_workload)
        if wanted.route is Route.BANNER:
            exchange.answer(text_answer(f"keepfleet keep {self._settings.kuuid}: awaiting a workload\n"), now)
            return
        if self._upload is not None:
            raise KeepfleetError(ErrorKind.CONFLICT, _TAKEN.format("is receiving"))
        self._upload = Upload(exchange, wanted, self._settings, now)
        self._reporter.send(
            Report(ReportType.RECEIVING, f"receiving a workload from {_shown(uploader)}", upload=uploader)
        )
        if head.expects_continue:
            exchange.invite_body()

    def _refuse(self, exchange: Exchange, error: KeepfleetError, now: float) -> None:
        peer = exchange.peer
        client = f"; client: {peer}, {peer.fingerprint}" if isinstance(peer, CertificateFields) else ""
        _log(f"refused ({error.kind.value}): {error.message}{client}")
        exchange.answer(error_answer(error), now)
        self._drop(exchange, error.message)

    def _drop(self, exchange: Exchange, why: str = "the client left before its upload was whole") -> None:
        """Drops the exchange's upload, if it has one, and lets the next client have its turn."""
        if self._upload is None or self._upload.exchange is not exchange:
            return
        self._upload.close()
        self._upload = None
        self._reporter.send(Report(ReportType.AWAITING, f"awaiting a workload; the last was not taken: {why}"[:500]))

    def _checked(self, upload: Upload, checking: Checking, refusal: KeepfleetError | None, now: float) -> None:
        if refusal is not None:
            self._refuse(upload.exchange, refusal, now)
            return
        try:
            uploader = self._table.check(upload.exchange)
        except KeepfleetError as error:
            self._refuse(upload.exchange, error, now)
            return
        self._accept(upload, checking.note, uploader, now)

    def _accept(self, upload: Upload, note: str, uploader: Uploader, now: float) -> None:
        """The report goes out before the answer, so that an acknowledged workload is never lost."""
        module, self._upload = upload.module, None
        self._accepted = True
        text = f"accepted a module of {module.bytes} bytes, {module.digest}, from {_shown(uploader)}"
        if note:
            text += f"; {note}"
            _log(note)
        self._reporter.send(Report(ReportType.ACCEPTED, text, upload=uploader, module=module))
        if upload.request.route is Route.PAYLOAD:
            upload.exchange.answer(text_answer(RECEIVED), now)
        else:
            answer = {"sha256": module.digest.removeprefix("sha256:"), "size": module.bytes}
            upload.exchange.answer(json_answer(answer), now)
        upload.close()
        self._close_listener(upload.exchange, now)

    def _close_listener(self, served: Exchange, now: float) -> None:
        """No further uploads: clients who may upload get 409, others nothing. The served one has sent all it had to."""
        self._closing_at = now + HANDOVER_SECONDS
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        taken = error_answer(KeepfleetError(ErrorKind.CONFLICT, _TAKEN.format("has taken")))
        for exchange in self._table.exchanges:
            if exchange is served or exchange.stage is Stage.ANSWERING:
                continue
            if exchange.stage in (Stage.HEADERS, Stage.BODY) and self._table.may_upload(exchange):
                exchange.answer(taken, now)
            else:
                exchange.close()
        if served.stage is Stage.LINGERING:
            served.close()

    def _expire(self, now: float) -> None:
        for exchange in self._table.exchanges:
            if exchange.interest and now >= exchange.deadline:
                self._time_out(exchange, now)
        upload = self._upload
        if upload is None:
            return
        if upload.checking is not None and now >= upload.checking.deadline:
            self._refuse(upload.exchange, upload.checking.give_up(), now)
        elif now >= upload.recheck_at:
            upload.recheck_at = now + ACCESS_RECHECK_SECONDS
            try:
                self._table.check(upload.exchange)
                if upload.exchange.stage is Stage.BODY:
                    upload.check_pace(now)
            except KeepfleetError as error:
                self._refuse(upload.exchange, error, now)

    def _time_out(self, exchange: Exchange, now: float) -> None:
        if exchange.stage is Stage.BODY or (exchange.stage is Stage.HEADERS and self._table.may_upload(exchange)):
            seconds = STALL_SECONDS if exchange.stage is Stage.BODY else HEADERS_SECONDS
            error = KeepfleetError(
                ErrorKind.TOO_SLOW, f"cannot wait for the rest of the {exchange.stage.value}: {seconds:g} s have passed"
            )
            self._refuse(exchange, error, now)
        else:
            exchange.close()
