"""What is declared, as it is on disk, and what that needs of the module store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from keep_manager.declared.specification import Specification
from keep_manager.declared.specifications import Specifications, Unreadable
from keep_manager.model import StoredModule
from keep_protocol.errors import KeepfleetError

LOG = logging.getLogger("keepfleet.declared")


class Modules(Protocol):
    """What is needed of the module store; the methods block. Both raise KeepfleetError alone."""

    def take(self, wanted: str) -> StoredModule:
        """What a reference means now."""

    def declared(self, digests: Iterable[str]) -> None:
        """Specifications name these modules and no others."""


class Catalogue:
    """The specifications of one manager. Who writes one holds `changing`, from reading it on."""

    def __init__(self, files: Specifications, modules: Modules) -> None:
        self._files, self._modules = files, modules
        self.specifications: dict[str, Specification | Unreadable] = {}
        self.changing = asyncio.Lock()
        """Reading, deciding and writing are one step."""
        self._used: dict[str, set[str]] = {}
        self._proven: dict[str, list[str]] = {}
        """Of each name the digests of versions that have been ready, the latest first, as the history has them."""

    def __repr__(self) -> str:
        return f"Catalogue({len(self.specifications)})"

    async def open(self) -> None:
        """Reads what is declared. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.open)
        self.specifications = await asyncio.to_thread(self._files.load)
        for name, found in self.specifications.items():
            if isinstance(found, Unreadable):
                LOG.error("declared keep %s is left as it is: %s", name, found.why.message)
            await self._count_use(name)
        await self._declare_uses()
        if self.specifications:
            LOG.info("%d keeps are declared", len(self.specifications))

    def get(self, name: str) -> Specification | None:
        """The one of that name, where there is one that can be read."""
        found = self.specifications.get(name)
        return found if isinstance(found, Specification) else None

    def readable(self) -> list[Specification]:
        """Every one that can be read."""
        return [each for each in self.specifications.values() if isinstance(each, Specification)]

    def proven_before(self, wanted: Specification) -> str:
        """The digest of the latest version that has been ready and is another one, "" for none."""
        return next((digest for digest in self._proven.get(wanted.name, ()) if digest != wanted.digest), "")

    async def history(self, name: str) -> list[Specification]:
        """What was wanted before, the latest first. Raises KeepfleetError."""
        return await asyncio.to_thread(self._files.history, name)

    async def write(self, specification: Specification, before: Specification | None) -> None:
        """Has it be what is wanted; on disk when this returns. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.write, specification, before)
        self.specifications[specification.name] = specification

    async def uses_changed(self, name: str) -> None:
        """Declares to the store what the name needs since it was written."""
        await self._count_use(name)
        await self._declare_uses()

    async def prove(self, name: str, digest: str) -> None:
        """Writes down that what is wanted has been ready, unless that is another version now. Raises KeepfleetError."""
        async with self.changing:
            wanted = self.get(name)
            if wanted is not None and wanted.digest == digest:
                proven = wanted.changed(proven=True)
                await asyncio.to_thread(self._files.write, proven)
                self.specifications[name] = proven

    async def remove(self, name: str) -> None:
        """Has it be declared no more; gone from the disk when this returns. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.remove, name)
        for known in (self.specifications, self._used, self._proven):
            known.pop(name, None)

    async def meaning(self, module: str) -> str:
        """The digest that a module's reference means now. Raises KeepfleetError."""
        return (await asyncio.to_thread(self._modules.take, module)).digest

    async def _count_use(self, name: str) -> None:
        """Notes what the name's specification and those before it need of the store."""
        found = self.get(name)
        each = [found] if found is not None else []
        with suppress(KeepfleetError):  # what cannot be read cannot be gone back to
            each += await self.history(name)
        self._used[name] = {one.header.module for one in each if one.header.module}
        self._proven[name] = [one.digest for one in each if one.header.proven]

    async def _declare_uses(self) -> None:
        try:
            await asyncio.to_thread(self._modules.declared, set().union(*self._used.values()))
        except KeepfleetError as error:
            LOG.warning("what is declared can be collected in the store: %s", error.message)
