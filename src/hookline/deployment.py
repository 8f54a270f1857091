"""Deployments and targets: where a call can go.

Lives here: a model at a provider, and that deployment as chosen for one call. Elsewhere: which names mean which deployments (catalog.py), who chooses (builtins/model_selection).
Idea: a deployment is configuration and never changes; a target belongs to one call and carries that call's timeouts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hookline.money import Price
from hookline.principal import Limits
from hookline.slots import Slot

MADE_AT: Slot[tuple[str, str]] = Slot("made_at")
"""(provider, deployment with a key of its own or ""): where a call without a model goes, instead of to the default provider. Written by `owners`."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one attempt's stages may take, in seconds: `connect_s` resolving, TCP and TLS; `first_byte_s` from the request to the first byte of the answer;
    `idle_s` between two arrivals; `total_s` from the request to the last byte, None: the call's deadline alone; `min_bytes_per_s` over ten seconds, 0: any."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float | None = None
    min_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model at one provider. `id` is unique ("openai/gpt-4o"); `model` is the upstream's name for it, "" for routes without a model."""

    id: str
    provider: str
    model: str
    price: Price | None = None
    weight: float = 1.0
    mode: Literal["chat", "completions"] | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    capabilities: frozenset[str] | None = None
    """What of "vision", "tools", "json_schema", "audio" it can do; None: that is not known."""
    api_key: str | None = field(default=None, repr=False)
    region: str | None = None
    tags: frozenset[str] = frozenset()
    priority: int = 0
    """Smaller ones are tried first; the others take what spills over."""
    key_number: int | None = None
    """Which of its provider's several keys it sends; None: they take turns, or there are not several."""
    key_count: int = 1
    """Among how many such deployments its weight is shared."""
    timeouts: Timeouts = Timeouts()

    def by_key(self, keys: int) -> tuple[Deployment, ...]:
        """One for each of its provider's keys, "openai/gpt-4o#1" and so on, so that each has circuit, limits and load of its own. Itself, if it has a key of its own or there is no choice."""
        if keys < 2 or self.api_key is not None or not self.model:
            return (self,)
        return tuple(replace(self, id=f"{self.id}#{n + 1}", key_number=n, key_count=keys) for n in range(keys))

    @property
    def listed_id(self) -> str:
        """Its id as proxy.toml knows it, whichever key it sends."""
        return self.id if self.key_number is None else self.id.rpartition("#")[0]

    @property
    def share(self) -> float:
        """Its part of the weight that proxy.toml gives: so many keys do not make a deployment weigh more."""
        return self.weight / self.key_count


OWN = -1.0
"""In place of a time: the deployment's own."""


@dataclass(slots=True)
class Target:
    """A deployment as chosen for this call. `select` hooks return Targets in the order to try; times are seconds, at first the deployment's own."""

    deployment: Deployment
    connect_timeout_s: float = OWN
    first_byte_timeout_s: float = OWN
    idle_timeout_s: float = OWN
    hedge_after_s: float | None = None
    is_forced: bool = False
    reason: str = ""
    total_timeout_s: float | None = OWN
    min_bytes_per_s: float = OWN
    model: str | None = None
    """The model it stands for, where that is another one than the call asked for."""

    def __post_init__(self) -> None:
        own = self.deployment.timeouts
        if self.connect_timeout_s == OWN:
            self.connect_timeout_s = own.connect_s
        if self.first_byte_timeout_s == OWN:
            self.first_byte_timeout_s = own.first_byte_s
        if self.idle_timeout_s == OWN:
            self.idle_timeout_s = own.idle_s
        if self.total_timeout_s == OWN:
            self.total_timeout_s = own.total_s
        if self.min_bytes_per_s == OWN:
            self.min_bytes_per_s = own.min_bytes_per_s
