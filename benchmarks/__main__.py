"""Runs the benchmarks on the host it is started in: `python -m benchmarks [--quick] [--only NAME…] [--out FILE]`.

It installs keepfleet's units and makes and removes hundreds of them: for a host of its own, as `./run bench` boots.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarks.host import Host
from benchmarks.measuring import MeasurementFailed
from benchmarks.results import facts, write_results
from benchmarks.suite import BENCHMARKS, run_all
from benchmarks.table import render
from keep_protocol.errors import KeepfleetError

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description="measures keepfleet; a missed goal is no failure")
    parser.add_argument("--quick", action="store_true", help="few samples: shows that everything can be measured")
    parser.add_argument("--only", nargs="+", choices=tuple(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes (default: benchmarks/results/)")
    return parser.parse_args()


def main() -> int:
    """The exit code: 1 when something could not be measured, whatever the figures are."""
    options = _arguments()
    out = options.out or os.path.join(RESULTS, time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime()))
    failed = False
    try:
        with Host() as host:
            before = facts(host)
            sections = run_all(host, tuple(options.only or BENCHMARKS), quick=options.quick)
            failed = any(section.failure for section in sections)
            print(render(sections))
            write_results(out, before, sections, quick=options.quick)
            print(f"\nwritten to {os.path.relpath(out)}")
    except (MeasurementFailed, KeepfleetError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
