"""Wishes: what a request says about how its deployment is to be chosen.

Lives here: headers and body members, read and taken out. Elsewhere: what operators say (options.py), how wishes are met (qualifying.py, ranking.py).
Idea: a wish narrows what the operator allows, or says who goes first; it never widens anything. Body members are ours alone: an upstream would refuse them, so they
leave the request before it is frozen. The header wins over the member.

| header | member | |
|---|---|---|
| `x-hookline-complexity` | `complexity` | "simple", "medium", "complex" |
| `x-hookline-prefer-provider` | `prefer_provider` | a provider's name |
| `x-hookline-max-cost-usd` | `max_cost`: a number, or `{"usd": ...}` | what the call may cost at worst |
| `x-hookline-max-cost-per-1k-usd` | `max_cost`: `{"per_1k_usd": ...}` | what 1,000 tokens may cost |
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from multidict import istr

from hookline import BadRequest, Call, Rejected, Slot, to_nanousd
from hookline.builtins.model_selection.complexity import CLASSES, Complexity

MEMBERS = frozenset({"complexity", "prefer_provider", "max_cost"})
ENDPOINTS = frozenset({"chat", "completions", "responses", "embeddings"})
"""Elsewhere members of these names may be the upstream's own."""
NAME_MAX = 64
USD_MAX = 1_000_000

COMPLEXITY_HEADER = istr("x-hookline-complexity")
PROVIDER_HEADER = istr("x-hookline-prefer-provider")
COST_HEADER = istr("x-hookline-max-cost-usd")
PER_1K_HEADER = istr("x-hookline-max-cost-per-1k-usd")


class Wishes(NamedTuple):
    """None: it does not say."""

    complexity: Complexity | None = None
    prefer_provider: str | None = None
    max_cost_nanousd: int | None = None
    max_per_1k_nanousd: int | None = None

    @property
    def vary(self) -> str:
        """What of it can change the answer; "" if nothing can: a cost that is too high is refused, not answered otherwise."""
        return (
            f"{self.complexity or ''},{self.prefer_provider or ''}" if self.complexity or self.prefer_provider else ""
        )


WISHES: Slot[Wishes] = Slot("selection wishes")
NONE = Wishes()


def take_wishes(call: Call, *, is_followed: bool) -> Wishes:
    """What a request says; NONE where it is not followed. The members are taken out of it. Raises Rejected for a wish nobody can follow."""
    find = call.headers.get
    said: dict[str, Any] = {}
    payload = call.payload
    if payload is not None and not MEMBERS.isdisjoint(payload) and call.endpoint in ENDPOINTS:
        payload = call.edit_payload()
        said = {name: payload.pop(name) for name in MEMBERS & payload.keys()}
        said = {name: value for name, value in said.items() if value is not None}
    complexity, provider = find(COMPLEXITY_HEADER), find(PROVIDER_HEADER)
    cost, per_1k = find(COST_HEADER), find(PER_1K_HEADER)
    if not said and complexity is None and provider is None and cost is None and per_1k is None:
        return NONE
    if not is_followed:
        call.note("model_selection", "ignored", "what requests wish is not followed here")
        return NONE
    cost_said, per_1k_said = _read_max_cost(said.get("max_cost"))
    return Wishes(
        _read_complexity(_first(complexity, said.get("complexity"))),
        _read_provider(_first(provider, said.get("prefer_provider"))),
        _read_usd(_first(cost, cost_said), COST_HEADER if cost is not None else "max_cost"),
        _read_usd(_first(per_1k, per_1k_said), PER_1K_HEADER if per_1k is not None else "max_cost"),
    )


def _first(header: str | None, member: Any) -> Any:
    return member if header is None else header.strip()


def _read_complexity(value: Any) -> Complexity | None:
    if value is None:
        return None
    for known in CLASSES:
        if isinstance(value, str) and value.lower() == known:
            return known
    raise _refused("complexity", f"is one of {', '.join(CLASSES)}, not {_shown(value)}")


def _read_provider(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= NAME_MAX):
        return value
    raise _refused("prefer_provider", f"is the name of a provider, not {_shown(value)}")


def _read_max_cost(value: Any) -> tuple[Any, Any]:
    """(USD of the call, USD per 1,000 tokens)"""
    if not isinstance(value, dict):
        return value, None
    if unknown := value.keys() - {"usd", "per_1k_usd"}:
        raise _refused("max_cost", f"holds usd and per_1k_usd, not {_shown(min(unknown))}")
    return value.get("usd"), value.get("per_1k_usd")


def _read_usd(value: Any, name: str) -> int | None:
    """USD as nano-dollars."""
    if value is None:
        return None
    try:
        usd = Decimal(str(value)) if not isinstance(value, bool) else Decimal("nan")
    except InvalidOperation:
        usd = Decimal("nan")
    if not usd.is_finite() or not 0 <= usd <= USD_MAX:
        raise _refused(str(name), f"is USD, 0 or more, not {_shown(value)}")
    return to_nanousd(usd)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refused(param: str, what: str) -> Rejected:
    return Rejected(BadRequest(f'"{param}" {what}', param=param))
