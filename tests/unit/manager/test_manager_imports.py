"""What a manager's start does not pay for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import json, os
before = dict(os.environ)
import keep_manager.http.app
from aiohttp import connector
context = connector._SSL_CONTEXT_VERIFIED
print(json.dumps([context.cert_store_stats()["x509"], dict(os.environ) == before]))
"""


def test_the_server_s_import_reads_no_ca_certificates_of_the_host_and_leaves_the_environment_alone() -> None:
    for extra in ({}, {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}):
        environment = {**os.environ, **extra}
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, env=environment)
        assert json.loads(done.stdout) == [0, True]
