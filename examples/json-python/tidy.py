"""Prints its arguments, JSON texts, tidily: a WASI 0.2 command in Python. A component can exit with 0 or 1 alone.

Built by: examples/build json-python
"""

import json
import sys

from componentize_py_types import Err
from wit_world import exports


class Run(exports.Run):
    """What the world exports: wasi:cli/run."""

    def run(self) -> None:
        """The program. Raising Err is exit code 1."""
        for text in sys.argv[1:]:
            try:
                print(json.dumps(json.loads(text), indent=2, sort_keys=True))
            except ValueError as error:
                print(f"tidy: cannot read {text!r}: {error}", file=sys.stderr)
                raise Err(None) from error
