"""Where one `keepctl run` uses the processor: by process, sampled while many of them run, one after the other.

`python -m benchmarks.breakdown [RUNS]`, as root in a playground (./run exec), where perf(1) is installed. What other
process namespaces do meanwhile is not counted; sampling itself costs a tenth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter

from benchmarks.host import example

RATE = 4000
"""Samples a second and processor: an odd run differs by less than the machine does."""
MODULE = "hello-wat"
NAMES = {
    "keepctl": "keepctl",
    "(python)": "what systemd does in the unit before the keep-loader",
    "python": "keep-loader",
    "keep-endpoint": "upload endpoint",
    "keep-runner": "runner",
    "keep-checker": "checker",
    "keep-manager": "keep-manager",
    "systemd": "service manager",
    "systemd-journal": "journald",
    "dbus-daemon": "the bus",
}
"""By what the kernel calls them; the loader has its interpreter's name."""
_OTHERS = ("perf", "perf-exec", "sh", "swapper")


def sampled(argv: list[str], runs: int) -> Counter[str]:
    """Samples by process name over `runs` runs of a command."""
    with tempfile.TemporaryDirectory() as place:
        data = f"{place}/perf.data"
        loop = 'for run in $(seq "$1"); do "$2" run --rm "$3" >/dev/null || exit; done'
        record = ["perf", "record", "-q", "-a", "-F", str(RATE), "-e", "cpu-clock", "-o", data, "--", "sh", "-c", loop]
        subprocess.run([*record, "sh", str(runs), *argv], check=True)
        script = ["perf", "script", "-i", data, "-F", "comm,pid"]
        lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        name, _, pid = line.strip().rpartition(" ")
        if int(pid) > 0:  # 0: of another process namespace, or idle
            found[name.strip()] += 1
    return found


def main() -> None:
    """Prints milliseconds of one run, the largest first."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    keepctl = os.path.join(os.path.dirname(sys.executable), "keepctl")
    argv = [keepctl, example(MODULE)]
    subprocess.run([keepctl, "run", "--rm", argv[1]], check=True, stdout=subprocess.DEVNULL)  # the first is cold
    found = sampled(argv, runs)
    for name in _OTHERS:
        found.pop(name, None)
    each = 1000 / RATE / runs
    for name, count in found.most_common():
        print(f"{count * each:7.2f} ms  {NAMES.get(name, name)}")
    print(f"{found.total() * each:7.2f} ms  in all")


if __name__ == "__main__":
    main()
