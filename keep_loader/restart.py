"""When a workload is started again, and when that is given up.

It is systemd that starts it again, by starting the loader that exits for it: Restart=, its delay and its limit hold.
Pure. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_protocol.keep import Outcome, OutcomeKind

NO, ON_FAILURE, ALWAYS = "no", "on-failure", "always"
"""The words of workload.RestartPolicy, which only a keep whose start describes a workload imports."""
POLICIES = (NO, ON_FAILURE, ALWAYS)
MAX_RERUNS = 4
RERUN_SECONDS = 60.0
"""The unit's StartLimitBurst=5 in StartLimitIntervalSec=60, less the keep's first start: just before systemd would give
the unit up and its last outcome with it, the loader gives the workload up and tells that outcome."""
RESTART_STATUS = 75
"""The loader's exit status that asks systemd to start it again: EX_TEMPFAIL (sysexits.h), which nothing else uses."""


def wanted(policy: str, outcome: Outcome) -> bool:
    """Whether the policy asks for another run after `outcome`.

    Not once somebody has stopped it, and not where it could not even be started: it never could.
    """
    if policy == NO or outcome.kind in (OutcomeKind.STOPPED, OutcomeKind.REFUSED):
        return False
    return policy == ALWAYS or outcome.kind is not OutcomeKind.EXITED or outcome.exit_code != 0


def recent(reruns: tuple[float, ...], now: float) -> tuple[float, ...]:
    """Those of the times of earlier starts that still count at `now`; both on the monotonic clock, since boot."""
    return tuple(moment for moment in reruns if 0 <= now - moment < RERUN_SECONDS)


def too_often(reruns: tuple[float, ...], now: float) -> str | None:
    """Why another run is not tried; None when it may be."""
    if len(recent(reruns, now)) < MAX_RERUNS:
        return None
    return f"gave it up after starting it again {MAX_RERUNS} times within {RERUN_SECONDS:g} s"
