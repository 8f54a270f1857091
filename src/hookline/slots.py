"""Slots: typed places on a call where plugins leave things for each other and for themselves.

Lives here: `Slot` and the slots that more than one plugin reads. Elsewhere: slots that one plugin keeps for itself (in that plugin's file), the call (call.py).
Idea: a slot is compared by identity, so two plugins can't collide by choosing the same name; the name is only for people."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """A typed key of `Call`: `SPEND = Slot[Reservation]("budget")`, then `call[SPEND] = reservation` and `call.find(SPEND)`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Slot({self.name!r})"


CACHE_STATUS: Slot[str] = Slot("cache_status")
"""How the response cache took part: "hit", "miss", "stale" or "bypass". Written by `cache`, read by `logging` and `metrics`."""

END_USER: Slot[str] = Slot("end_user")
"""Whom the client says it calls for. A claim, for logs and tags: it decides nothing. Written by `auth`, read by `logging`."""

EXPOSED_HEADERS: Slot[dict[str, str]] = Slot("exposed_headers")
"""Reply headers that belong on every reply to this call, also one that no upstream made (an error, a cache hit)."""
