"""The timeouts of each deployment, from the tables that name them.

Lives here: which table wins. Elsewhere: the tables (config.py), what each time means (deployment.py), who keeps them (transport).
Idea: resolved once, when the configuration is compiled; a call only copies them."""

from __future__ import annotations

from dataclasses import replace

from hookline.config import ProviderTable, Server, TimeoutsTable
from hookline.deployment import Timeouts

OLDER_SPELLING = ("connect", "first_byte", "idle")
"""A provider may also say `idle_timeout_s` beside its other options: the same as `timeouts = { idle_s }`, which wins."""


def resolve_timeouts(server: Server, provider: ProviderTable | None, *nearer: TimeoutsTable) -> Timeouts:
    """The timeouts of a deployment of this provider; of `nearer` tables the last one wins."""
    found = Timeouts(server.connect_timeout_s, server.first_byte_timeout_s, server.idle_timeout_s)
    if provider is not None:
        flat = {f"{name}_s": provider.options.get(f"{name}_timeout_s") for name in OLDER_SPELLING}
        found = replace(found, **{name: float(s) for name, s in flat.items() if isinstance(s, int | float)})
        nearer = (provider.timeouts, *nearer)
    for table in nearer:
        found = replace(found, **table.model_dump(exclude_none=True))
    return found
