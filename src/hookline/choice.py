"""Choice: what plugins tell each other about how a deployment is chosen.

Lives here: slots. Elsewhere: who chooses (builtins/model_selection), deployments and targets (deployment.py).
Idea: whoever knows better says so; the choosing plugin has a fallback for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hookline.principal import Principal
from hookline.slots import Slot

COMPLEXITY: Slot[str] = Slot("complexity")
"""How hard the request is: "simple", "medium" or "complex". Written in `prepare` by a plugin that judges it, read by `model_selection` in place of its own estimate."""

CACHE_VARY: Slot[str] = Slot("cache_vary")
"""What the answer depends on beside the request's own bytes. Written in `prepare`, read by `cache`, in whose key it is."""

BUDGET_LEFT: Slot[Callable[[Principal], Awaitable[float | None]]] = Slot("budget_left")
"""The share (0 to 1) that is left of the tightest budget that pays for a principal; None if none does. Offered by `budget` in `host.offers`; it asks the store, and raises Unavailable or Rejected where that can't say."""
