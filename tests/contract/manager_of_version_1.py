"""Does what a manager of version 1 does to a loader, by its own client: run with the packages of version_1.tar.xz.

Arguments: the runtime root, the keep's ID, its port, and the numbers of the descriptors of its start. Prints what it
was answered, one JSON object a line: the keep described, started, stopped and shown after it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from keep_manager.loader_client import Loaders
from keep_protocol.control import Command, CommandType


async def main(root: str, kuuid: int, port: str, descriptors: list[int]) -> None:
    """Makes, starts and stops the keep."""
    described = json.dumps({"name": "other", "labels": {"a": "b"}, "owner": "Ann Example"})
    loaders = Loaders(root)
    async with loaders.session(kuuid) as session:
        shown: list[Any] = [await session.ask(Command(CommandType.DESCRIBE, described))]
        for kind, contents in (
            (CommandType.ADDR, "127.0.0.1"),
            (CommandType.PORT, port),
            (CommandType.NAMES, "a.example,10.0.0.1"),
        ):
            await session.ask(Command(kind, contents))
        shown.append(await session.ask(Command(CommandType.START), 15.0, descriptors))
    waiting = asyncio.ensure_future(loaders.ask(kuuid, Command(CommandType.WAIT, "2"), 15.0))
    shown.append(await loaders.ask(kuuid, Command(CommandType.STOP, "alice"), 15.0))
    await waiting
    shown.append(await loaders.ask(kuuid, Command(CommandType.INFO)))
    for info in shown:
        print(json.dumps(info.to_wire()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], [int(number) for number in sys.argv[4:]]))
