"""A workload from its file to its end: a keep with the workload in it, its output, and what becomes of the keep.

Whatever ends it, the keep is removed, stopped, or named with what to do about it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking
import os
from _collections_abc import Callable
from io import FileIO

from keep_client.credentials import Credentials
from keep_client.http import nothing, nothing_of
from keep_client.keep import endpoint_of, file_size, open_workload, received, upload_raw
from keep_client.manager import ManagerClient
from keep_client.output import Output
from keep_client.peer import ConnectionFailed, one_line
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from keepctl.display import UploadBar, WaitingLine, output_reader, say
from keepctl.job import SCRIPTS, Job, is_stored
from keepctl.output import Show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import _SSLContext

STANDARD_INPUT = "-"
"""The name of a module that comes from a pipe."""
UNKNOWN_START = "unknown field 'start'"
"""What a manager says that takes a creation and a start in two requests alone."""


class Left(Exception):
    """The person does not wait for the workload's end."""


class Fate(Enum):
    """What is done with a keep whose output is shown no longer; the value is what was done."""

    LEAVE = "left it running"
    STOP = "stopped it"
    REMOVE = "removed it"


class EndingSignals:
    """SIGTERM and SIGHUP are Ctrl-C inside; but for one that was ignored before, as nohup has it: that stays so."""

    def __enter__(self) -> None:
        numbers = (_signal.SIGTERM, _signal.SIGHUP)
        asked = [number for number in numbers if _signal.getsignal(number) != _signal.SIG_IGN]
        self._before = {number: _signal.signal(number, _signal.default_int_handler) for number in asked}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _signal.signal(number, handler)


def send(
    context: _SSLContext,
    keep: KeepInfo,
    manager_host: str,
    file: FileIO,
    before: Callable[[], None] = nothing,
) -> str:
    """Sends an open file to a started keep, with a bar where that takes long; what the keep says it received.

    before: called when the keep is reached, before it is sent anything. Raises KeepfleetError.
    """
    endpoint = endpoint_of(keep, manager_host)
    with UploadBar(file_size(file)) as bar:
        reply = upload_raw(endpoint, context, file, bar, before)
    return received(reply, file)


def listen(
    client: ManagerClient, kuuid: int, address: str, port: int | None, names: tuple[str, ...], job: Job
) -> KeepInfo:
    """Starts a keep, without an address on the one the manager is reached by. Raises KeepfleetError."""
    try:
        return client.start(kuuid, address, port, names, job.workload())
    except KeepfleetError as error:
        hint = _next_step(error, address, renames=False)
        if not hint:
            raise
        raise KeepfleetError(error.kind, f"{error.message}; {hint}", error.evidence) from error


def create(
    client: ManagerClient,
    job: Job,
    arch: str,
    replace: bool,
    key: str = "",
    start: dict[str, object] | None = None,
    address: str = "",
    meanwhile: Callable[[], None] = nothing,
    waiting: Callable[[str], None] = nothing_of,
    follows: bool = False,
) -> KeepInfo:
    """A new keep for a job, with `start` one that listens, on `address` where that was asked for; key: an idempotency
    key; meanwhile: done while the manager works; waiting: hears how far its module's compilation is;
    follows: whether its workload does, immediately. Raises KeepfleetError."""
    try:
        return client.create(
            arch,
            job.name,
            job.labels,
            job.limits,
            key,
            replace,
            job.lease,
            start,
            meanwhile,
            profile=job.profile,
            compiler=job.compiler,
            output=job.output,
            module=job.module if is_stored(job.module) else "",
            waiting=waiting,
            follows=follows,
        )
    except KeepfleetError as error:
        hint = _next_step(error, address, renames=bool(job.name) and not replace)
        if not hint:
            raise
        raise KeepfleetError(error.kind, f"{error.message}; {hint}", error.evidence) from error


def _next_step(error: KeepfleetError, address: str, renames: bool) -> str:
    """What to do about a name that is taken, or an address that was not named; "" for another error."""
    if error.kind is ErrorKind.CONFLICT and renames:
        return "with --replace that one is ended first"
    if error.kind is ErrorKind.PORT_UNAVAILABLE and not address:
        return "name an address of the manager's host with --address, or in: keepctl context set NAME --address IP"
    return ""


class _Upload:
    """The TLS context for a keep, and what the upload imports: made ready while the manager works, which is 4 ms."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._context: _SSLContext | None = None

    def prepare(self) -> None:
        """Raises nothing: what fails here fails again in `context`, and is said then."""
        import _hashlib  # noqa: F401  # for the pin, and for what the keep confirms

        try:
            self._context = self._credentials.keep_context()
        except KeepfleetError:
            self._context = None

    def context(self) -> _SSLContext:
        """Raises KeepfleetError(CERTIFICATE)."""
        return self._context or self._credentials.keep_context()


def begin(
    client: ManagerClient,
    credentials: Credentials,
    job: Job,
    address: str,
    port: int | None,
    replace: bool,
    watched: bool = True,
) -> tuple[KeepInfo, Output]:
    """A keep that has received the job's module, and its output; or none, when anything fails.

    watched: its guest begins when we have its output, and not before, so that none can be missed.
    Where the answer to its creation is lost, the manager is asked with the same key once more what it made. Not with
    `replace`: the second request could be the one that ends the keep which has the name.
    """
    if is_stored(job.module):
        return _begin_stored(client, job, replace, watched)
    keep: KeepInfo | None = None
    output: Output | None = None
    upload = _Upload(credentials)
    with open_module(job.module) as file:
        start = client.starting(address, port, (), job.workload())
        key = os.urandom(16).hex()

        def make() -> KeepInfo:
            try:
                return create(client, job, "wasi", replace, key, start, address, upload.prepare, follows=True)
            except KeepfleetError as error:
                if error.kind is not ErrorKind.BAD_REQUEST or UNKNOWN_START not in error.message:
                    raise
            return create(client, job, "wasi", replace, key)  # of a manager of before: one that does not listen yet

        try:
            keep = make()
            if keep.state is State.LISTENING:
                keep = listen(client, keep.kuuid, address, port, (), job)
            output = Output(client, keep.kuuid, follow=True, hold=True, reader=output_reader())
            if watched:
                output.request()  # its answer comes while the keep's certificate is looked at
            send(upload.context(), keep, client.endpoint.host, file, output.attach if watched else nothing)
        except BaseException as error:
            _undo(client, job, keep, output, error, replace, make)
            raise
    return keep, output


def _begin_stored(client: ManagerClient, job: Job, replace: bool, watched: bool) -> tuple[KeepInfo, Output]:
    """The same of a module of the manager's store: one that is not watched runs from its creation on."""
    keep: KeepInfo | None = None
    output: Output | None = None
    start: dict[str, object] | None = None if watched else {"workload": job.workload()}
    line = WaitingLine()
    key = os.urandom(16).hex()

    def make() -> KeepInfo:
        return create(client, job, "wasi", replace, key, start, waiting=line)

    try:
        with line:
            keep = make()
            output = Output(client, keep.kuuid, follow=True, hold=True, reader=output_reader())
            if watched:
                output.attach()
                keep = client.run_stored(keep.kuuid, job.workload(), line)
    except BaseException as error:
        _undo(client, job, keep, output, error, replace, make)
        raise
    return keep, output


def _undo(
    client: ManagerClient,
    job: Job,
    keep: KeepInfo | None,
    output: Output | None,
    error: BaseException,
    replace: bool,
    make: Callable[[], KeepInfo],
) -> None:
    """Leaves nothing of a keep whose beginning has failed with `error`."""
    if output is not None:
        output.close()
    if keep is None and _may_have_worked(error):
        if replace:
            say(f"keepctl: it is not known whether keep {job.name} was replaced; see: keepctl ps")
        else:
            keep = _again(make)
    if keep is not None:
        settle(client, keep.kuuid, Fate.REMOVE)


def open_module(module: str) -> FileIO:
    """The module's file, open. Raises KeepfleetError."""
    if module.endswith(SCRIPTS):
        from keepctl.program import open_script  # here: most of what is run is no script

        return open_script(module)
    if module != STANDARD_INPUT:
        return open_workload(module)
    from keepctl.input import spooled  # here: `tempfile` is 6 ms, and most modules are files

    return spooled()


def _may_have_worked(error: BaseException) -> bool:
    """Whether a creation that ended like this may have made a keep. One that took too long has not: the manager undoes
    what its client does not wait for."""
    return not isinstance(error, KeepfleetError) or (
        isinstance(error, ConnectionFailed) and error.kind is not ErrorKind.TOO_SLOW
    )


def _again(make: Callable[[], KeepInfo]) -> KeepInfo | None:
    try:
        return make()
    except KeepfleetError:
        return None  # the first error is the one to report


def until_the_end(
    manager: ManagerClient, kuuid: int, output: Output, show: Show, stopping: Callable[[], None]
) -> tuple[KeepInfo, bool]:
    """Shows the keep's output until it has ended; the keep then, and whether Ctrl-C ended it.

    At the first Ctrl-C `stopping` is called and the workload stopped; its last words are still shown. Raises Left at
    the second, KeepfleetError when the manager cannot be reached any more or does not give the output, BrokenPipeError
    when our output's reader has gone, and OSError when it cannot be written.
    """
    stopped = False
    while True:
        try:
            arriving = output.pieces()
            try:
                for pieces in arriving:
                    show(pieces)
            finally:
                arriving.close()
            return output.keep or manager.ended(kuuid), stopped
        except KeyboardInterrupt:
            if stopped:
                raise Left from None
            stopped = True
            try:
                stopping()
                manager.stop(kuuid)
            except KeyboardInterrupt:
                raise Left from None


def settle(manager: ManagerClient, kuuid: int, fate: Fate, patient: bool = True) -> bool:
    """Does with the keep what `fate` says; where that fails, or Ctrl-C ends it, names what is left and what to do.

    patient: a manager that is away for a moment is asked again. Returns whether it is done.
    """
    try:
        if fate is Fate.REMOVE:
            manager.remove(kuuid, patient)
        elif fate is Fate.STOP:
            manager.stop(kuuid)
    except (KeepfleetError, KeyboardInterrupt) as error:
        if fate is Fate.STOP and isinstance(error, KeepfleetError) and _is_over(error):
            return True
        why = f": {error.message}" if isinstance(error, KeepfleetError) else ""
        todo = f"remove it: keepctl rm {kuuid}" if fate is Fate.REMOVE else f"stop it: keepctl stop {kuuid}"
        say(one_line(f"keepctl: left keep {kuuid}{why}; {todo}"))
        return False
    return True


def _is_over(error: KeepfleetError) -> bool:
    """Whether a stop was refused since nothing runs there any more."""
    return error.kind in (ErrorKind.CONFLICT, ErrorKind.NOT_FOUND)
