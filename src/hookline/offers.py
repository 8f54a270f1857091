"""Offers: what plugins of one configuration ask of each other, through `host.offers`.

Lives here: offers that more than one plugin knows. Elsewhere: paying for a shared reply (flight.py).
Idea: who offers puts a function in, in its constructor; who asks looks it up per call, and does without where nobody offers. So neither imports the other, and either may be absent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from hookline.call import Call
from hookline.deployment import Deployment, Target
from hookline.errors import ApiError
from hookline.slots import Slot

LACKS: Slot[Callable[[Call, Deployment], Iterable[str]]] = Slot("lacks")
"""Why a deployment may not serve a call: features, lengths, rules. Offered by `model_selection`, asked by `fallback` about other models."""

LONGER_MODELS: Slot[Callable[[Call, Sequence[Target]], list[Target]]] = Slot("longer models")
"""Targets for a request that is too long for all of these. Offered by `fallback`, asked by `model_selection` before it refuses."""

KEY_REFUSAL: Slot[Callable[[str], Awaitable[ApiError | None]]] = Slot("key refusal")
"""What every call with the key of this name or id is answered (it is disabled, revoked, has expired); None: it is good. Offered by `auth`, for those who explain a call that is another's."""
