"""What a person sees: tables and progress bars drawn by rich on a terminal, plain text everywhere else.

rich is imported where it draws: a command in a pipe does not pay its 60 ms.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from keep_client.text import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LAST_COLUMN = 16
"""The narrowest a table's last column gets; a terminal without that room folds the table's lines itself."""
PATIENCE_SECONDS = 0.5
"""What takes less needs no bar."""


def json_text(value: object) -> str:
    """`value` for people and programs."""
    return json.dumps(value, indent=2)


def json_line(value: object) -> str:
    """`value` on one line, for streams."""
    return json.dumps(value, separators=(",", ":"))


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
        click.echo(plain_table(header, rows))
        return
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


class UploadBar:
    """A bar on standard error for an upload, and the check after it, once it takes PATIENCE_SECONDS; else nothing."""

    def __init__(self, total: int, shown: bool | None = None) -> None:
        """total: the file's bytes; shown: whether anybody sees it, by default whether that is a terminal."""
        self._total, self._sent = total, 0
        self._lock = threading.Lock()
        visible = sys.stderr.isatty() if shown is None else shown
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._timer = threading.Timer(PATIENCE_SECONDS, self._show) if visible else None

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
        elif self._progress.tasks[0].total is not None:  # nobody knows how long it takes: a bar that moves, and a clock
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("checking and compiling", total=None, completed=self._sent)

    def __call__(self, sent: int) -> None:
        """`sent` bytes have gone out."""
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
        with self._lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if self._progress is not None:
                self._progress.stop()
        if timer is not None:
            timer.join()
