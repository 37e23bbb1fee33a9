"""Starts one of the app-loader's three processes: the upload endpoint, the checker of an upload, the runner.

Run by path under `python -I -S`, so this file is compiled at every start and holds nothing but the way in.
The directory the packages lie in is appended to `sys.path`, never put first: the standard library must win.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main(arguments: list[str] | None = None) -> int:
    """Runs the part named by the first argument: none for the endpoint, `check`, or `run`. Returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["run"]:
        from app_loader.run.runner import run

        return run()
    if words == ["check"]:
        from app_loader.settings import claim

        passed = claim(os.environ)  # before the engine's libraries open files of their own
        from app_loader.check.compiler import check

        return check(passed)
    if words:
        print("usage: app-loader (started by keep-loader; it has no options)", file=sys.stderr)
        return 2
    from app_loader.receive.service import serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
