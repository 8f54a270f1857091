"""Ranking: groups of deployments that come before others, whatever the strategy says.

Lives here: what makes a group, and putting groups together. Elsewhere: the order within one (orders.py), who is left out (qualifying.py).
Idea: a group is full only when all of it is; then the load spills over to the next. In this order: limits that are known to be used up come last; the class of the request, the nearest first;
the preferred provider; `priority`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hookline import Deployment, Target
from hookline.builtins.model_selection.orders import Order


class Rank(NamedTuple):
    """Smaller comes first."""

    wait_s: float
    """For how long the upstream would refuse; 0: it would not."""
    classes_above: int
    is_not_preferred: bool
    priority: int


def rank_of(
    deployment: Deployment,
    *,
    wait_s: float,
    served: frozenset[int],
    class_at: int | None,
    preferred: str | None,
    has_tiers: bool = True,
) -> Rank:
    """`served` are the classes of requests the deployment is for, `class_at` that of this one, which is not above all of them."""
    above = 0 if class_at is None else min(at - class_at for at in served if at >= class_at)
    return Rank(
        wait_s, above, preferred is not None and deployment.provider != preferred, deployment.priority * has_tiers
    )


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
