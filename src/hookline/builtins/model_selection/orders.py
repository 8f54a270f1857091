"""Orders: which of several deployments that may all serve a call goes first.

Lives here: one pure function per strategy. Elsewhere: who may serve at all (qualifying.py), groups that come before others (ranking.py), how busy they are (loads.py).
Idea: each answers all its targets, because the second one is who gets the load of a first that fails: it is as well spread as the first choice.

Weighted and sticky are one rule with different dice: each target draws -ln(u) / weight and the smallest goes first (Efraimidis and Spirakis 2006; with a hash for u: weighted rendezvous
hashing, Schindelhauer and Schomaker 2005). So both choose in proportion to the weights, and a sticky key moves only if its own deployment comes or goes.

A provider with several keys is as many deployments, which share the weight of the one that is listed: "in turn" and "sticky" choose that one first, then its key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

from hookline import Deployment, Target, Usage
from hookline.builtins.model_selection.loads import Load
from hookline.builtins.model_selection.options import Strategy

Draw = Callable[[], float]
"""0 <= draw() < 1."""
T = TypeVar("T")
Order = Callable[[Sequence[Target]], list[Target]]
LoadOf = Mapping[int, Load]
"""By `id(target)`."""


def by_weight(items: Sequence[T], weights: Sequence[float], draws: Sequence[float]) -> list[T]:
    """The smaller -ln(u) / weight first. Weight 0 is only for when others fail: last, as listed."""
    keys = [-math.log(1.0 - u) / weight if weight > 0 else math.inf for weight, u in zip(weights, draws, strict=True)]
    return [items[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]


def at_random(targets: Sequence[Target], draw: Draw) -> list[Target]:
    """In proportion to their weights."""
    return by_weight(targets, [target.deployment.share for target in targets], [draw() for _ in targets])


def by_hash(targets: Sequence[Target], who: str) -> list[Target]:
    """The same order for the same `who`, in proportion to the weights over many of them. A key that comes or goes moves nobody to another deployment."""
    listings = _by_listing(targets)
    weights = [keyed[0].deployment.weight for keyed in listings.values()]
    chosen = by_weight(list(listings.values()), weights, [hashed(id, who) for id in listings])
    return [one for keyed in chosen for one in sorted(keyed, key=lambda one: hashed(one.deployment.id, who))]


def hashed(deployment_id: str, who: str) -> float:
    """0 <= it < 1, the same in every process."""
    digest = blake2b(f"{deployment_id}\0{who}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return (int.from_bytes(digest) >> 3) / 2**53


def by_turn(targets: Sequence[Target], turn: int) -> list[Target]:
    """Each is first once in a row, and each of the others second in turn: so they share what a dead first leaves. The keys of one take turns at its turns."""
    if not have_keys(targets):
        return _rotated(targets, turn)
    listings = list(_by_listing(targets).values())
    return [target for keyed in _rotated(listings, turn) for target in _rotated(keyed, turn // len(listings))]


def as_listed(targets: Sequence[Target], turn: int) -> list[Target]:
    """As in the file; the keys of one deployment take turns."""
    return [target for keyed in _by_listing(targets).values() for target in _rotated(keyed, turn)]


def _by_listing(targets: Iterable[Target]) -> dict[str, list[Target]]:
    """Those that differ by their key alone, together."""
    listings: dict[str, list[Target]] = {}
    for target in targets:
        listings.setdefault(target.deployment.listed_id, []).append(target)
    return listings


def _rotated(items: Sequence[T], turn: int) -> list[T]:
    count = len(items)
    start = turn % count
    rest = [*items[start + 1 :], *items[:start]]
    skipped = turn // count % (count - 1) if count > 1 else 0
    return [items[start], *rest[skipped:], *rest[:skipped]]


def by_in_flight(targets: Sequence[Target], *, load_of: LoadOf, draw: Draw) -> list[Target]:
    """Fewest attempts under way for its weight first; equals by chance."""

    def busyness(target: Target) -> float:
        weight = target.deployment.share
        return load_of[id(target)].in_flight / weight if weight > 0 else math.inf

    return sorted(at_random(targets, draw), key=busyness)


def by_latency(targets: Sequence[Target], *, load_of: LoadOf, draw: Draw, is_stream: bool, now: float) -> list[Target]:
    """Power of two choices: of two drawn by weight the one that would be done sooner; the others follow by that measure.

    The best of all would be found by everyone at once: two choices spread almost as well as knowing all, and don't herd (Mitzenmacher 2001)."""
    cost_of = {}
    for target in targets:
        weight = target.deployment.weight
        cost = load_of[id(target)].weight_of_one_more(is_stream, now)
        cost_of[id(target)] = (weight <= 0, cost / weight if weight > 0 else cost)
    drawn = at_random(targets, draw)
    first = min(drawn[:2], key=lambda target: cost_of[id(target)])
    rest = sorted((target for target in drawn if target is not first), key=lambda target: cost_of[id(target)])
    return [first, *rest]


def by_cost(targets: Sequence[Target], *, usage: Usage, draw: Draw) -> list[Target]:
    """Cheapest first; unknown prices last; equals by weight."""
    return sorted(at_random(targets, draw), key=lambda target: cost_rank(target.deployment, usage))


def cost_rank(deployment: Deployment, usage: Usage) -> tuple[bool, int]:
    price = deployment.price
    return (True, 0) if price is None else (False, price.cost_nanousd(usage))


def strategy_for(strategy: Strategy, targets: Sequence[Target]) -> Strategy | None:
    """What "auto" means for these; None: they stay as they are."""
    if strategy == "auto":
        strategy = "weighted" if len({target.deployment.weight for target in targets}) > 1 else "listed"
    return None if strategy == "listed" and not have_keys(targets) else strategy


def have_keys(targets: Iterable[Target]) -> bool:
    """Whether some differ by their key alone."""
    return any([target.deployment.key_number is not None for target in targets])  # noqa: C419  # a generator costs twice as much
