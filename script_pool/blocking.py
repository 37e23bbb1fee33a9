"""The client of a script pool for programs without an event loop; `script_pool.client` says what it does.

Import rule: the standard library alone.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import threading
import uuid
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

from script_pool.asking import (
    MAX_ANSWER,
    PROGRAM,
    START_SECONDS,
    Function,
    Functions,
    Offered,
    PoolError,
    Ran,
    add_request,
    answer_of,
    await_end,
    connect,
    done,
    failure_line,
    line_of,
    ran,
    result_line,
    run_request,
)


class BlockingPool:
    """As `Pool`, for programs without an event loop. Threads may share one, which asks for one after another. A host
    function is called in the thread that asks, and may ask the pool itself."""

    def __init__(self, path: str | None = None, options: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        self._path, self._command = path, (*program, *options)
        self._lock = threading.RLock()
        self._ids = count(1)
        self._functions = Offered()
        self._early: dict[int, dict[str, Any]] = {}
        self._socket: socket.socket | None = None
        self._program: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"BlockingPool({self._path or 'its own'}, {'open' if self._socket else 'closed'})"

    def __enter__(self) -> Self:
        self._socket, self._program = connect(self._path, self._command)
        self._socket.settimeout(START_SECONDS)
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._program is not None:
            await_end(self._program)

    def add(self, name: str, code: str, language: str = "js", functions: Functions = ()) -> None:
        """As Pool.add."""
        done(self._ask(add_request(name, code, language, functions)))

    def remove(self, name: str) -> None:
        """As Pool.remove."""
        done(self._ask({"cmd": "RemoveCode", "name": name}))

    def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """As Pool.run."""
        return self.call(name, sandbox, **settings).output

    def call(
        self,
        name: str,
        sandbox: Mapping[str, Any],
        *,
        session: str | None = None,
        clock: float | None = None,
        zone: str | None = None,
    ) -> Ran:
        """As Pool.call."""
        return ran(self._ask(run_request(name, sandbox, session, clock, zone)))

    def host_function(self, function: Function | None = None, *, name: str | None = None) -> Any:
        """As Pool.host_function, for plain functions."""
        return self._functions.offer(function, name)

    def session(self, name: str | None = None) -> BlockingSession:
        """As Pool.session."""
        return BlockingSession(self, name or str(uuid.uuid4()))

    def load_session(self, saved: bytes, name: str | None = None) -> BlockingSession:
        """As Pool.load_session."""
        session, text = self.session(name), base64.b64encode(saved).decode("ascii")
        done(self._ask({"cmd": "LoadSession", "session": session.name, "saved": text}))
        return session

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        number = next(self._ids)
        line = line_of({"id": number, **request})
        with self._lock:
            self._send(line)
            while number not in self._early:
                answer = self._receive()
                if "hostCall" in answer:
                    self._send(self._called(answer))
                else:
                    self._early[answer.get("id", 0)] = answer
            return self._early.pop(number)

    def _called(self, asked: dict[str, Any]) -> bytes:
        try:
            return result_line(asked, self._functions.find(asked)(*asked["hostCall"]["arguments"]))
        except PoolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the script's to see
            return failure_line(asked, error)

    def _send(self, line: bytes) -> None:
        if self._socket is None:
            raise PoolError("cannot ask the pool: it is not open")
        try:
            self._socket.sendall(line)
        except OSError as error:
            self._close()
            raise PoolError(f"cannot ask the pool: {error.strerror or error}") from error

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self._lines.readline(MAX_ANSWER)
        except (OSError, ValueError) as error:
            self._close()  # an answer that comes later would be taken for the next one's
            raise PoolError(f"cannot ask the pool: {error}") from error
        if not answer.endswith(b"\r\n"):
            self._close()
            raise PoolError("cannot have the pool's answer: it has ended the connection")
        return answer_of(answer)

    def _close(self) -> None:
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None


class BlockingSession:
    """As Session, of a BlockingPool."""

    def __init__(self, pool: BlockingPool, name: str) -> None:
        self._pool, self.name = pool, name

    def __repr__(self) -> str:
        return f"BlockingSession({self.name!r})"

    def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """As Session.run."""
        return self._pool.run(name, sandbox, session=self.name, **settings)

    def call(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> Ran:
        """As Session.call."""
        return self._pool.call(name, sandbox, session=self.name, **settings)

    def save(self) -> bytes:
        """As Session.save."""
        answer = done(self._pool._ask({"cmd": "SaveSession", "session": self.name}))
        return base64.b64decode(answer["saved"])

    def end(self) -> None:
        """As Session.end."""
        done(self._pool._ask({"cmd": "EndSession", "session": self.name}))
