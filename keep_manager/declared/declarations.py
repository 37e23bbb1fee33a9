"""What clients may ask about declared keeps. Who may is asked by the caller of this, by each one's owner."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from keep_manager.declared.jobs import Jobs
from keep_manager.declared.reconciler import Reconciler
from keep_manager.declared.specification import Header, Specification, read_job
from keep_manager.declared.specifications import MAX_DECLARED, Unreadable, check_name
from keep_manager.model import Caller
from keep_protocol.declared import DeclaredKeep, DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.runs import Run


class Declarations:
    """The declared keeps, for clients. Every method raises KeepfleetError alone, NOT_FOUND for a name that none has."""

    def __init__(self, reconciler: Reconciler, jobs: Jobs, clock: Callable[[], float] = time.time) -> None:
        self._reconciler, self._jobs, self._clock = reconciler, jobs, clock

    def __repr__(self) -> str:
        return f"Declarations({self._reconciler!r})"

    def names(self) -> list[str]:
        """The names of all."""
        return sorted(self._reconciler.declared.specifications)

    def owner(self, name: str) -> str | None:
        """Whose it is, "" where that cannot be read, and None where none has the name."""
        found = self._reconciler.declared.specifications.get(name)
        return None if found is None else "" if isinstance(found, Unreadable) else found.header.owner

    def get(self, name: str) -> DeclaredKeep:
        """One of them, as it is wanted and as it is."""
        found, standing = self._found(name), self._reconciler.standing(name)
        shown = DeclaredKeep(name, standing.state, standing.text, kuuid=standing.kuuid)
        if isinstance(found, Unreadable):
            return shown
        header = found.header
        if found.job.schedule:
            shown = shown.replace(
                schedule=found.job.schedule, next_run=self._jobs.next_run(name), last_run=self._jobs.last_run(name)
            )
        return shown.replace(
            owner=header.owner,
            version=header.version,
            module=found.job.module,
            digest=header.module,
            applied_at=header.applied_at,
            note=header.note,
            manifest=found.text,
        )

    async def settled(self, name: str, seconds: float) -> DeclaredKeep:
        """One of them once nothing is done for it now, or as it is after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.get(name).settled:
                    await self._reconciler.standings.said()
        return self.get(name)

    async def apply(self, name: str, manifest: str, caller: Caller) -> DeclaredKeep:
        """Has there be a keep as the manifest says; who owned the name before still does. Its module's reference means
        what it means now. The same again changes nothing, but is tried immediately."""
        check_name(name)
        job = await asyncio.to_thread(read_job, name, manifest)
        if job.schedule:
            await self._jobs.check(job.schedule)
        module = await self._meaning(job.module)
        async with self._reconciler.declared.changing:
            before = self._reconciler.declared.specifications.get(name)
            if isinstance(before, Specification):
                module = module or (before.header.module if before.job.module == job.module else "")
                if (before.text, before.header.module) == (manifest, module):
                    self._reconciler.retry(name)
                    return self.get(name)
                header = before.header.replace(note="", proven=False)
            else:
                if before is None and len(self._reconciler.declared.specifications) >= MAX_DECLARED:
                    why = f"there are {MAX_DECLARED} already"
                    raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot declare {name}: {why}")
                last = max((each.header.version for each in await self._reconciler.declared.history(name)), default=0)
                header = Header(caller.name, caller.role, last + 1, 0.0, secrets.token_hex(32))
            version = header.version + isinstance(before, Specification)
            changed = header.replace(version=version, applied_at=self._clock(), module=module)
            wanted = Specification(name, changed, manifest, job)
            if isinstance(before, Specification) and wanted.digest == before.digest:  # what runs is what ran
                runs = self._reconciler.standing(name).state is DeclaredState.RUNNING
                wanted = wanted.changed(proven=before.header.proven or runs)
            await self._reconciler.write(wanted, before if isinstance(before, Specification) else None)
        return self.get(name)

    async def restart(self, name: str) -> DeclaredKeep:
        """Has another keep take the place of the one there is, or run again what has ended; a job is run now. Raises
        CONFLICT where one of its runs goes on that no other may overlap."""
        if self._readable(name).job.schedule:
            await self._jobs.run_now(name)
            return self.get(name)
        async with self._reconciler.declared.changing:
            before = self._readable(name)
            header = before.header
            again = before.changed(
                version=header.version + 1,
                generation=header.generation + 1,
                applied_at=self._clock(),
                proven=False,
            )
            await self._reconciler.write(again, before)
        return self.get(name)

    async def runs(self, name: str) -> tuple[Run, ...]:
        """The latest runs of a job, the oldest first. Raises CONFLICT for what is no job."""
        if not self._readable(name).job.schedule:
            why = "it is no job; `schedule:` in its manifest would make it one"
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot list the runs of {name}: {why}")
        return await self._jobs.runs(name)

    async def roll_back(self, name: str) -> DeclaredKeep:
        """Wants again what was wanted before, which was another thing. Raises CONFLICT where nothing was."""
        async with self._reconciler.declared.changing:
            now = self._readable(name)
            was = (now.text, now.header.module)
            history = await self._reconciler.declared.history(name)
            before = next((each for each in history if (each.text, each.header.module) != was), None)
            if before is None:
                why = "nothing else was declared before"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot roll {name} back: {why}")
            note = f"version {now.header.version} was rolled back to version {before.header.version}: it was asked for"
            back = before.changed(version=now.header.version + 1, applied_at=self._clock(), note=note)
            await self._reconciler.write(back, now)
        return self.get(name)

    async def delete(self, name: str) -> None:
        """Has it be declared no more; its keeps end then."""
        async with self._reconciler.declared.changing:
            self._found(name)
            await self._reconciler.forget(name)

    async def _meaning(self, module: str) -> str:
        """What the reference means, "" where the store has nothing of that name yet. Raises KeepfleetError."""
        try:
            return await self._reconciler.declared.meaning(module)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return ""

    def _found(self, name: str) -> Specification | Unreadable:
        try:
            return self._reconciler.declared.specifications[name]
        except KeyError:
            raise not_declared(name) from None

    def _readable(self, name: str) -> Specification:
        found = self._found(name)
        if isinstance(found, Unreadable):
            raise KeepfleetError(ErrorKind.CONFLICT, found.why.message)
        return found


def not_declared(name: str) -> KeepfleetError:
    """The error for a name that nothing is declared by, or not for the caller, who must not find out which."""
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the declared keep {name[:63]!r}: none has that name")
