"""For every test: being terminated ends the session as Ctrl-C does, so that fixtures still clean up."""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.default_int_handler)
