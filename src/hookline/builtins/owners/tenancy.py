"""Whether this gateway serves more than one tenant.

Lives here: the tenants that are known, how a process learns of one. Elsewhere: who is of which tenant (`auth`), what follows from it (__init__.py).
Idea: a call costs one look into a set. The first call of a tenant leaves a mark in `records` before it goes on, so no two processes can each believe that
theirs is the only tenant; and whoever can't ask assumes that there are others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from hookline import Host, Owner, Unavailable

LOOK_EVERY_S: Final = 0.5
"""How long another process may take to notice the second tenant."""
MARK: Final = "tenant:"
"""How the ids of marks begin: no object's id can be asked for with it and be found, for marks have no provider."""


class Tenancy:
    """Known tenants. `is_shared` never goes back."""

    def __init__(self, host: Host, names: Iterable[str], *, is_always_shared: bool) -> None:
        self._host = host
        self._named = set(names)
        self._known: set[str] = set()
        self._looking: dict[str, asyncio.Task[set[str]]] = {}
        """Questions under way: a burst of first calls asks once."""
        self.is_shared = is_always_shared or len(self._named) > 1

    def is_alone(self, tenant: str) -> bool:
        """Whether this tenant is known to be the only one."""
        return not self.is_shared and tenant in self._known

    async def meet(self, tenant: str) -> bool:
        """A tenant that this process has not served before: mark it, and see whether it is the only one."""
        if self.is_shared:
            return False
        try:
            others = await self._look_once(tenant)
        except Unavailable:
            return False  # until it can be told
        self.is_shared = self.is_shared or bool(others)
        self._known.add(tenant)
        return not self.is_shared

    async def watch(self) -> None:
        """Look for tenants that others have met; ends with the second one."""
        while not self.is_shared:
            try:
                found = set(await self._host.records.owners.tenants())
                self.is_shared = self.is_shared or len(found | self._named | self._known) > 1
            except Unavailable:
                pass  # an outage makes no tenants; whoever is new while it lasts is not believed to be alone
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_once(self, tenant: str) -> set[str]:
        """Look together with everybody who wants to know the same; a caller who leaves does not end it. Raises Unavailable."""
        task = self._looking.get(tenant)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._find_others(tenant), name="owners: look for others")
            self._looking[tenant] = task
            task.add_done_callback(lambda task: self._end_looking(tenant, task))
        return await asyncio.shield(task)

    def _end_looking(self, tenant: str, task: asyncio.Task[set[str]]) -> None:
        del self._looking[tenant]
        if not task.cancelled():
            task.exception()  # whoever asked has left: it is asked again

    async def _find_others(self, tenant: str) -> set[str]:
        """Leave this tenant's mark, then look who else there is. Raises Unavailable."""
        owners = self._host.records.owners
        await owners.claim([Owner(MARK + tenant, tenant, "", self._host.clock.time(), "tenant")])
        return (set(await owners.tenants()) | self._named | self._known) - {tenant}
