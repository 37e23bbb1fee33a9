"""Sends a keep its workload, with a bar where that takes long."""

from __future__ import annotations

import ssl
from io import FileIO

from keep_client.keep import door_of, file_size, received, upload_raw
from keep_protocol.keep import KeepInfo
from keepctl.display import UploadBar


def send(context: ssl.SSLContext, keep: KeepInfo, manager_host: str, file: FileIO) -> str:
    """Sends an open file to a started keep; what the keep says it received. Raises KeepfleetError."""
    door = door_of(keep, manager_host)
    with UploadBar(file_size(file)) as bar:
        reply = upload_raw(door, context, file, bar)
    return received(reply, file)
