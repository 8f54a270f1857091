"""Own calls: what is said of a call that a plugin makes: a mirror, a health probe, a refresh, a rescue.

Lives here: `derive_call`, slots that who makes such a call writes, and others read. Elsewhere: how it is run (`Host.run`, `Host.begin`), who pays for it (`Call.principal`).
Idea: it goes through the whole chain like any other; only what would be concluded from a client's call must not be concluded from it."""

from __future__ import annotations

from collections.abc import Callable

from multidict import CIMultiDict

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.host import Clock
from hookline.principal import Principal
from hookline.slots import Slot

OWN_CALL: Slot[str] = Slot("own_call")
"""What the call is for ("mirror", "rescue"), where no client made it. Written by `derive_call` and by who makes such a call otherwise; read by `mirror`."""

IN_BACKGROUND: Slot[bool] = Slot("in_background")
"""Nobody waits for the reply (a mirror, a probe, a refresh): nothing stands in for it where providers fail, no hedge hurries it, and no stop of the process waits for it."""

OBJECTS_OF: Slot[str | None] = Slot("objects_of")
"""The tenant whose stored objects the call may name, where that is not who pays; None: it names and makes none. Read by `owners`."""

IS_EVIDENCE: Slot[Callable[[Attempt], bool]] = Slot("is_evidence")
"""Whether the end of an attempt of this call says anything about its deployment's health; without it, it does. Read by `circuit_breaker`; `model_selection` learns no latency from such a call."""

REPEATS: Slot[Call] = Slot("repeats")
"""The call whose request this one asks again, of another model or for another who pays: it may go where that may go, and nowhere else. Written by `derive_call`, read by `model_selection`."""


def derive_call(
    call: Call, name: str, clock: Clock, *, surface: str, headers: CIMultiDict[str], principal: Principal | None = None
) -> Call:
    """An `OWN_CALL` to where `call` went, beginning now, with the id `<id>-<name>`; its body, deadline and tags are the caller's to set."""
    derived = Call(
        id=f"{call.id}-{name}",
        method=call.method,
        path=call.path,
        query=call.query,
        endpoint=call.endpoint,
        headers=headers,
        started_at=clock.monotonic(),
        started_time=clock.time(),
        surface=surface,
        principal=principal or call.principal,
    )
    derived[OWN_CALL] = name
    derived[REPEATS] = call
    return derived
