"""The end user: whom a client says it calls for.

Lives here: where that is read. Elsewhere: who pays (the Principal; this changes it only where `end_user_pays` says so).
Idea: a claim of the client. It goes into logs and tags, and decides nothing by itself."""

from __future__ import annotations

from dataclasses import replace

from hookline import Call, Principal, RateLimited, Rejected

CHARS_MAX = 200
PAYING_MAX = 4_096
DAY_S = 86_400.0


def find_end_user(call: Call, header: str | None) -> str | None:
    """From the header, else `safety_identifier`, else `user`; None where it is no plain text."""
    found: object = call.headers.get(header) if header is not None else None
    payload = call.payload
    if not found and payload is not None:
        found = payload.get("safety_identifier") or payload.get("user")
    if isinstance(found, str) and found and found.isprintable():
        return found[:CHARS_MAX]
    return None


class PayingUsers:
    """Principals by end user. Kept, because plugins know a principal by its identity.

    Each new name is a budget and limits of its own, so a key gets `names_max` of them in a day: else whoever has the key makes up names for ever."""

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._day = 0
        self._names: dict[str, set[str]] = {}
        self._made: dict[tuple[int, str], tuple[Principal, Principal]] = {}

    def find(self, principal: Principal, end_user: str, day: int) -> Principal:
        """`principal` with this user. Raises Rejected for a new name that is one too many."""
        if day > self._day:
            self._day, self._names = day, {}
        names = self._names.setdefault(principal.key_id, set())
        if end_user not in names:
            if len(names) >= self._names_max:
                told = f'key "{principal.key_name}" has named {self._names_max} end users today; no new one is taken before 00:00 UTC'
                raise Rejected(RateLimited(told, code="too_many_end_users", may_retry=False))
            names.add(end_user)
        key = (id(principal), end_user)
        made = self._made.get(key)
        if made is None or made[0] is not principal:
            if len(self._made) >= PAYING_MAX:
                self._made.clear()
            made = self._made[key] = (principal, replace(principal, user=end_user))
        return made[1]
