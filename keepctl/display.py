"""What a person sees: lines, errors as sentences, tables and progress bars drawn by rich on a terminal, plain text
everywhere else; and the exit code of a command that fails.

rich is imported where it draws: a command in a pipe does not pay its 60 ms.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from _collections_abc import Callable, Sequence

from keep_client.http import nothing
from keep_client.peer import CertificateRefused, ConnectionFailed, one_line, printable
from keep_protocol.errors import KeepfleetError
from keep_protocol.sse import GAP_SOURCE, LogLine
from keepctl.describe import FAILED, INTERRUPTED, NO_ANSWER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from types import TracebackType
    from typing import Self

    from rich.progress import Progress, TaskID

    from keep_client.credentials import Credentials

_LAST_COLUMN = 16
"""The narrowest a table's last column gets; a terminal without that room folds the table's lines itself."""
_USUAL_COLUMNS = 80
"""Of a terminal that does not say how wide it is."""
PATIENCE_SECONDS = 0.5
"""What takes less needs no bar."""
_shown: list[Credentials] = []
"""The credentials this command shows, once it knows them."""


def json_text(value: object) -> str:
    """`value` for people and programs."""
    import json  # here: what a person reads needs none

    return json.dumps(value, indent=2)


def json_line(value: object) -> str:
    """`value` on one line, for streams."""
    import json

    return json.dumps(value, separators=(",", ":"))


def echo(text: str) -> None:
    """A line on standard output, there as soon as it is printed. Raises OSError."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line on standard error. Where that cannot be written, there is no other place to say so."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # or the exit fails once more


def discard_output() -> None:
    """Standard output is /dev/null from here on: nothing can be written there, and the exit would flush it again."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the process's life


def remember(credentials: Credentials) -> None:
    """This command shows these: `show_error` looks at them where they were refused."""
    _shown[:] = [credentials]


def _words(error: KeepfleetError) -> str:
    """The error's message; of a refused certificate, better than a guess, what is wrong with our file."""
    if not isinstance(error, CertificateRefused) or not _shown:
        return error.message
    import datetime

    from keepctl.inspection import fault_of_ours  # here: its library costs 45 ms, and only a refusal needs it

    fault = fault_of_ours(_shown[0].certificate, _shown[0].ca, datetime.datetime.now(datetime.UTC))
    return f"cannot use {error.peer}: {fault}" if fault else error.message


def show_error(error: KeepfleetError) -> None:
    """One line, and the evidence it does not hold already indented below it, on standard error."""
    say(f"keepctl: {one_line(_words(error))}")
    for line in error.evidence:
        if line not in error.message:
            say(f"    {printable(line)}")


def show_failure(error: KeepfleetError) -> int:
    """The same, and the exit code for it."""
    show_error(error)
    return NO_ANSWER if isinstance(error, ConnectionFailed) else FAILED


def unwritten(error: OSError) -> int:
    """Output that cannot be written, or a file that cannot be used, in one line; quietly where its reader has gone. The
    exit code."""
    if error.errno != errno.EPIPE:
        say(one_line(f"keepctl: cannot go on: {error.filename or ''} {error.strerror or error}"))
    discard_output()
    return FAILED


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`, or of what it raises, which is shown."""
    try:
        return work()
    except KeepfleetError as error:
        return show_failure(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return unwritten(error)


def has_input() -> bool:
    """Whether a pipe, a socket, or a file with something in it is our standard input, and no terminal or device."""
    try:
        status = os.fstat(0)
    except OSError:
        return False  # it is closed
    piped = stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)
    return piped or (stat.S_ISREG(status.st_mode) and status.st_size > 0)


def output_reader() -> int | None:
    """Standard output's descriptor where it shows that its reader has gone, as a pipe and a socket do; else None.

    A terminal that goes away sends SIGHUP, and a file has no reader. tail(1) -f ends by the same sign.
    """
    try:
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed, or no file at all
        return None
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def line_printer(raw: bool, json: bool) -> Callable[[LogLine, str], None]:
    """Prints each line of a log as it comes, and a text before it: as JSON, as it is, or, with its control characters
    shown as escapes, on a terminal.

    What is said of missing bytes goes to standard error: it is no output of the guest's.
    """
    raw = raw or not sys.stdout.isatty()

    def show(line: LogLine, before: str) -> None:
        if json:
            echo(json_line(line.to_wire()))
        elif line.source == GAP_SOURCE:
            say(f"keepctl: {one_line(line.text)}")
        else:
            echo(before + (line.text if raw else printable(line.text)))

    return show


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the last one as long as it likes."""
    lines = [tuple(header), *[tuple(one_line(cell) or "-" for cell in row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(
        "".join(cell.ljust(width + 2) for cell, width in zip(line, widths, strict=False)) + line[-1] for line in lines
    )


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: on a terminal its last column folded to fit, elsewhere plain.

    The other columns are never folded: an address or an ID in two lines can be neither read nor copied.
    """
    if not sys.stdout.isatty():
        echo(plain_table(header, rows))
        return
    import shutil

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    last = len(header) - 1
    for number, title in enumerate(header):
        table.add_column(title, no_wrap=number < last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell) or "-") for cell in row))
    fixed = [max(len(line[column]) for line in (header, *rows)) + 2 for column in range(last)]
    columns, lines = shutil.get_terminal_size()
    # With both given, rich does not make every terminal that calls itself dumb 80 columns wide.
    Console(width=max(columns, sum(fixed) + _LAST_COLUMN), height=lines).print(table)


def _columns() -> int:
    """How wide the terminal on standard error is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except (OSError, ValueError):  # there is none
        return _USUAL_COLUMNS


class WaitingLine:
    """What is waited for, as one line on standard error: on a terminal it changes, and goes when the wait is over;
    elsewhere it is written once."""

    def __init__(
        self,
        terminal: bool | None = None,
        hint: str = "; the next start finds it compiled",
        before: Callable[[], None] = nothing,
    ) -> None:
        """terminal: whether standard error is one, by default as it is; hint: what the one line says besides; before:
        called before it is drawn where there was none."""
        self._terminal, self._hint = sys.stderr.isatty() if terminal is None else terminal, hint
        self._before, self._shown = before, ""

    def __repr__(self) -> str:
        return f"WaitingLine({self._shown!r})"

    def __call__(self, text: str) -> None:
        """It is as far as `text` says; "" where the wait is over."""
        if not text:
            self._clear()
        elif self._terminal:
            if not self._shown:
                self._before()
            self._draw(f"keepctl: {one_line(text)}")
        elif not self._shown:
            self._shown = text
            say(f"keepctl: {one_line(text)}{self._hint}")

    def _draw(self, text: str) -> None:
        text = text[: _columns() - 1]  # what goes on in the next line would stay there
        shown, self._shown = self._shown, text
        try:
            sys.stderr.write("\r" + text.ljust(len(shown)) + "\r" * (not text))
            sys.stderr.flush()
        except OSError:
            return  # a user who cannot be shown it waits all the same

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._terminal and self._shown:
            self._draw("")


class UploadBar:
    """A bar on standard error for an upload, and the check after it, once it takes PATIENCE_SECONDS; else nothing."""

    def __init__(self, total: int, shown: bool | None = None) -> None:
        """total: the file's bytes; shown: whether it is drawn at all, by default where that is a terminal."""
        self._total, self._sent = total, 0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._timer: threading.Timer | None = None
        if sys.stderr.isatty() if shown is None else shown:
            import threading

            self._lock = threading.Lock()
            self._timer = threading.Timer(PATIENCE_SECONDS, self._show)

    def __repr__(self) -> str:
        return f"UploadBar({self._sent} of {self._total} bytes)"

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._timer is None:
                return
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task("", total=self._total)
            self._draw()
            self._progress.start()

    def _draw(self) -> None:
        if self._progress is None or self._task is None:
            return
        if self._sent < self._total:
            self._progress.update(self._task, completed=self._sent, description="sending")
        elif self._progress.tasks[0].total is not None:  # how long it takes is not known: a bar that moves, and a clock
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("checking and compiling", total=None, completed=self._sent)

    def __call__(self, sent: int) -> None:
        """`sent` bytes have gone out."""
        if self._timer is None:
            return
        with self._lock:
            self._sent = sent
            self._draw()

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._timer
        if timer is None:
            return
        with self._lock:
            self._timer = None
            timer.cancel()
            if self._progress is not None:
                self._progress.stop()
        timer.join()
