"""Own calls: what is said of a call that no client made (a mirror, a health probe).

Lives here: slots that who makes such a call writes, and others read. Elsewhere: how it is made (`Host.run`), who pays for it (`Call.principal`).
Idea: it goes through the whole chain like any other; only what would be concluded from a client's call must not be concluded from it."""

from __future__ import annotations

from collections.abc import Callable

from hookline.attempt import Attempt
from hookline.slots import Slot

OBJECTS_OF: Slot[str | None] = Slot("objects_of")
"""The tenant whose stored objects the call may name, where that is not who pays; None: it names and makes none. Read by `owners`."""

IS_EVIDENCE: Slot[Callable[[Attempt], bool]] = Slot("is_evidence")
"""Whether the end of an attempt of this call says anything about its deployment's health; without it, it does. Read by `circuit_breaker`; `model_selection` learns no latency from such a call."""
