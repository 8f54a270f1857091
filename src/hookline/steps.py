"""Steps: what may come after a failed attempt.

Lives here: the answers of `after_failure`. Elsewhere: who gives them (builtins/fallback.py), who takes them (attempts.py, relay.py).
Idea: a decision is data, so that every policy is a table test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the same target again, after `delay_s`."""

    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fallback:
    """Try the next target."""


@dataclass(frozen=True, slots=True)
class Continue:
    """After bytes have left: let the next target go on from here, asked with these messages. Only while no tool call has begun."""

    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Pass the error on, whatever later plugins would say."""


Step = Retry | Fallback | Continue | GiveUp
