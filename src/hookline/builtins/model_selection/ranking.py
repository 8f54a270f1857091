"""Ranking: groups of deployments that come before others, whatever the strategy says.

Lives here: what makes a group, and putting groups together. Elsewhere: the order within one (orders.py), who is left out (qualifying.py).
Idea: a group is full only when all of it is; then the load spills over to the next. In this order: limits that are known to be used up come last; before them what has the weight 0; the provider that the request wishes; the class
of the request, the nearest first; the provider that the operator prefers; `priority`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hookline import Target
from hookline.builtins.model_selection.orders import Order
from hookline.builtins.model_selection.policies import Policy


class Rank(NamedTuple):
    """Smaller comes first."""

    wait_s: float = 0.0
    """For how long the upstream would refuse; 0: it would not."""
    is_reserve: bool = False
    """Its weight is 0: it is only for when others fail."""
    is_not_wished: bool = False
    classes_above: int = 0
    is_not_preferred: bool = False
    priority: int = 0

    def reasons(self) -> Sequence[str]:
        """Why it does not come first."""
        higher = f"{self.classes_above} {'class' if self.classes_above == 1 else 'classes'} higher"
        return [
            *([f"its upstream's limit is used up for {self.wait_s:.1f} s"] if self.wait_s else ()),
            *(["weight 0"] if self.is_reserve else ()),
            *(["not the provider that the request prefers"] if self.is_not_wished else ()),
            *([f"meant for requests {higher}"] if self.classes_above else ()),
            *(["not the preferred provider"] if self.is_not_preferred else ()),
            *([f"priority {self.priority}"] if self.priority else ()),
        ]


def ranks_of(
    targets: Sequence[Target], waits: Sequence[float], policy: Policy, class_at: int | None, wished: str | None
) -> list[Rank]:
    """The rank of each. `waits` are for how long each upstream would refuse, `class_at` is the class of the request, which every target serves or is above, `wished` the provider that it
    prefers."""
    ranks = []
    for target, wait_s in zip(targets, waits, strict=True):
        deployment, above = target.deployment, 0
        if class_at is not None:
            above = min(at - class_at for at in policy.classes_of(deployment.listed_id) if at >= class_at)
        ranks.append(
            Rank(
                wait_s,
                not deployment.weight,
                wished is not None and deployment.provider != wished,
                above,
                policy.prefer_provider is not None and deployment.provider != policy.prefer_provider,
                deployment.priority,
            )
        )
    return ranks


def why_first(strategy: str, targets: Sequence[Target], ranks: Sequence[Rank] | None) -> str:
    """Why the first one goes first, for the log."""
    if ranks is None:
        return strategy
    first, reasons = min(ranks), [strategy]
    if not first.wait_s and (full := [t.deployment.id for t, r in zip(targets, ranks, strict=True) if r.wait_s]):
        reasons.append(f"limits used up: {', '.join(full)}")
    if not first.is_not_wished and any(rank.is_not_wished for rank in ranks):
        reasons.append("the provider that the request prefers")
    if not first.is_not_preferred and any(rank.is_not_preferred for rank in ranks):
        reasons.append("the preferred provider")
    return "; ".join(reasons)


def arrange(targets: list[Target], ranks: Sequence[Rank] | None, order: Order | None) -> list[Target]:
    """Groups by rank (None: they are one group), each in its order (None: as it is)."""
    order = order or list
    if ranks is None or all(rank == ranks[0] for rank in ranks):
        return order(targets)
    groups: dict[Rank, list[Target]] = {}
    for target, rank in zip(targets, ranks, strict=True):
        groups.setdefault(rank, []).append(target)
    arranged: list[Target] = []
    for rank in sorted(groups):
        arranged += order(groups[rank]) if len(groups[rank]) > 1 else groups[rank]
    return arranged
