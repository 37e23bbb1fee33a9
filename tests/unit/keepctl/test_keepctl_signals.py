"""What ends a follower, and what does not."""

from __future__ import annotations

import os
import signal

from keepctl.run import ending_signals


def test_a_hangup_is_ctrl_c_unless_it_was_ignored_before_as_nohup_has_it() -> None:
    heard = []
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with ending_signals():
                os.kill(os.getpid(), signal.SIGHUP)
            heard.append("nothing")
        except KeyboardInterrupt:
            heard.append("Ctrl-C")
        finally:
            assert signal.signal(signal.SIGHUP, before) is handler
    assert heard == ["Ctrl-C", "nothing"]
