"""Steps: what may come after a failed attempt.

Lives here: the answers of `after_failure`. Elsewhere: who gives them (builtins/fallback), who takes them (attempts.py, relay.py).
Idea: a decision is data, so that every policy is a table test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hookline.deployment import Target
from hookline.slots import Slot

TARGETS_LEFT: Slot[Sequence[Target]] = Slot("targets left")
"""For `after_failure`: what would be tried next, in order."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the same target again, after `delay_s`."""

    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fallback:
    """Try the next target.

    `targets`: these, in place of those that are left. `retry_in_s`: once none is left, this target again, that many seconds from now; None takes back
    what was said so for others."""

    targets: Sequence[Target] | None = None
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Continue:
    """After bytes have left: let the next target go on from here, asked with these messages. Only while no tool call has begun.

    `messages_by_deployment`: other messages for some deployments, by id. `targets`: these, in place of those that are left. `members`: what events of
    the continuation say of the reply they belong to ("id", "model", "created"), as the client was told before. `output_cap`: at most so many tokens more."""

    messages: Sequence[Mapping[str, Any]]
    messages_by_deployment: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    targets: Sequence[Target] | None = None
    members: Mapping[str, Any] = field(default_factory=dict)
    output_cap: int | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Pass the error on, whatever later plugins would say."""


Step = Retry | Fallback | Continue | GiveUp
