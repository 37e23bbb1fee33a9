"""`tools/demo/__main__.py [--user] FILE.wasm`: the main job on this host; exits 0 only if every step was checked.

Run as a bare file by the interpreter of an installed prefix: what it tries is installed, and the demo itself is not.
"""

from __future__ import annotations

import argparse
import os
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from keep_protocol.errors import KeepfleetError
from tools.demo.host import Host, StepFailed
from tools.demo.story import Story


def main() -> int:
    """0 when every step did what it should, 1 otherwise, with the step and the unit's journal."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.partition("\n")[0])
    parser.add_argument("file", metavar="FILE.wasm", help="the workload")
    parser.add_argument("--user", action="store_true", help="on this user's service manager instead of the system's")
    parser.add_argument("--expect", help="a text the workload prints; without it only its end is checked")
    arguments = parser.parse_args()
    if not os.path.isfile(arguments.file):
        print(f"cannot read {arguments.file}: there is no such file", file=sys.stderr)
        return 2
    story = Story(Host(arguments.user), arguments.file, arguments.expect)
    try:
        story.run()
    except (StepFailed, KeepfleetError) as error:
        print(f"\nFAILED at: {story.step}\n  {error}", file=sys.stderr)
        for line in getattr(error, "evidence", ()):
            print(f"  {line}", file=sys.stderr)
        story.show_journal()
        return 1
    finally:
        story.tidy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
