"""The script pool next to the other sandboxes for scripts: `python -m benchmarks.compared [--quick] [NAME…]`.

They are plain processes, as the pool is with `--stdio`, so that this needs no systemd. Each is installed once, into a
directory of the user's cache, and measured with the pool in turns: what is above 1 the pool does better.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.asking import SCRIPT, Calls, round_of, served
from benchmarks.figures import Figure, Section
from benchmarks.measuring import MeasurementFailed, report
from benchmarks.rivals import PYTHON, RIVALS, CannotInstall, Rival, install
from benchmarks.scripts import compared_with_node
from benchmarks.table import render

ROUNDS, CALLS, FEW_CALLS = 3, 500, 50
CACHE = os.path.expanduser("~/.cache/keepfleet/scripts/compared")


def against(rival: Rival, command: Sequence[str], pool: Sequence[str], rounds: int, calls: int) -> list[Figure]:
    """The rival's figures over the pool's, in turns."""
    found = list[Figure]()
    languages = ("js",) if rival.language == "js" else ("micropython", "python")
    for in_flight in (1, 8):
        theirs, ours = list[Calls](), {language: list[Calls]() for language in languages}
        for _ in range(1 if rival.calls else rounds):
            for language in languages:
                code = json.dumps(SCRIPT if language == "js" else PYTHON).encode()
                with served(pool) as server:
                    server.ask(b'"cmd":"AddCode","name":"order","language":"%b","code":%b}' % (language.encode(), code))
                    ours[language].append(round_of(server, calls, in_flight))
            with served(command) as server:
                theirs.append(round_of(server, rival.calls or calls, in_flight, 1 if rival.calls else 50))
        for language in languages:
            what = f"{rival.package} ({rival.compared}), {in_flight} in flight, over the pool's {language}"
            for name, unit, rates in (("median", "ms", False), ("processor time", "ms", False), ("calls", "/s", True)):
                mine, other = (
                    tuple({"median": one.middle, "processor time": one.cpu, "calls": one.rate}[name] for one in calls_)
                    for calls_ in (ours[language], theirs)
                )
                floor = Figure(f"the pool's {language}", unit, mine, rates=rates)
                found.append(Figure(f"{what}: {name}", unit, other, floor=floor, rates=rates))
    return found


def main() -> int:
    """The exit code: 1 where something could not be measured that could be installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compared")
    parser.add_argument("--quick", action="store_true", help="few samples: shows that everything can be measured")
    parser.add_argument("names", nargs="*", metavar="NAME", help="node:vm, " + ", ".join(each.name for each in RIVALS))
    options = parser.parse_args()
    rounds, calls = (1, FEW_CALLS) if options.quick else (ROUNDS, CALLS)
    pool = [sys.executable, "-m", "script_pool", "--stdio", "--min=2", "--max=2", "--deadline=60", f"--cache={CACHE}"]
    sections, status = list[Section](), 0
    subprocess.run([*pool[:3], "--make-python", pool[-1]], check=True)
    if not options.names or "node:vm" in options.names:
        sections.append(Section("node", "node:vm, two processes", tuple(compared_with_node(pool, rounds, calls))))
    for rival in RIVALS:
        if options.names and rival.name not in options.names:
            continue
        report(f"compared: {rival.name}")
        try:
            figures = against(rival, install(rival, CACHE), pool, rounds, calls)
            sections.append(Section(rival.name, rival.package, tuple(figures)))
        except CannotInstall as error:
            report(f"compared: {rival.name} is not measured: {error}")
        except (MeasurementFailed, OSError) as error:
            status = 1
            report(f"compared: {rival.name} FAILED: {error}")
    print(render(sections))
    return status


if __name__ == "__main__":
    sys.exit(main())
