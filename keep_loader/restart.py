"""When a workload is started again.

Pure. Import rule: that of keep_loader.
"""

from __future__ import annotations

NO, ON_FAILURE, ALWAYS = "no", "on-failure", "always"
"""The words of workload.RestartPolicy, which only a keep whose start describes a workload imports."""
POLICIES = (NO, ON_FAILURE, ALWAYS)
