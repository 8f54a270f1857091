"""Prices: what a deployment charges.

Lives here: `[prices]` and the built-in table, and the order in which they are asked. Elsewhere: what a usage costs (money.py), how the built-in table
is made (scripts/refresh_prices.py).
Idea: a price is looked up when a deployment is built and never per call; whoever wrote `[prices]` is right, and the built-in table is a list of
ordered matches, as its source publishes it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from importlib import resources
from typing import Any

import orjson

from hookline.money import Price, to_nanousd
from hookline.paths import fold

PICO_PER_USD_PER_MTOK = 1_000_000
TOOL = "tool:"
_MAKERS = ("openai", "anthropic", "google")
"""Whose model names mean their prices wherever they are served. Open weights are not among them: who serves those sets the price."""


def price_from_usd(
    *,
    input: float = 0.0,
    output: float = 0.0,
    cached_input: float | None = None,
    cache_write: float | None = None,
    call: float = 0.0,
    audio_input: float | None = None,
    audio_output: float | None = None,
) -> Price:
    """A `[prices]` entry, USD per million tokens and USD per call, as exact integers."""
    return Price(
        input_picousd=_pico(input),
        output_picousd=_pico(output),
        cached_picousd=None if cached_input is None else _pico(cached_input),
        cache_write_picousd=None if cache_write is None else _pico(cache_write),
        call_nanousd=to_nanousd(call),
        audio_input_picousd=None if audio_input is None else _pico(audio_input),
        audio_output_picousd=None if audio_output is None else _pico(audio_output),
        source="proxy.toml",
    )


def is_tool(name: str) -> bool:
    """Whether a `[prices]` key names a hosted tool, not a model or a route."""
    return name.startswith(TOOL)


def _pico(usd_per_mtok: float) -> int:
    return int((Decimal(str(usd_per_mtok)) * PICO_PER_USD_PER_MTOK).to_integral_value(ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the built-in table knows of a model."""

    price: Price
    context_tokens: int | None


class PriceTable:
    """`[prices]` over the built-in table. `configured` is keyed as in the file: "provider/model", "model", "POST /v1/path/*" or "tool:name"."""

    def __init__(self, configured: Mapping[str, Price] | None = None) -> None:
        _vendors()  # now, not at the first call: then there may be no file descriptor left to read it with
        configured = configured or {}
        self.tools = tuple(
            sorted((name.removeprefix(TOOL), price.call_nanousd) for name, price in configured.items() if is_tool(name))
        )
        self._by_name = {name: price for name, price in configured.items() if " " not in name and not is_tool(name)}
        routes = [
            (method.upper(), pattern, price)
            for name, price in configured.items()
            if " " in name
            for method, pattern in (name.lower().split(None, 1),)
        ]
        self._by_route = sorted(routes, key=lambda route: ("*" in route[1], -len(route[1])))  # the most exact one first

    @property
    def names(self) -> frozenset[str]:
        """Model names that `[prices]` knows."""
        return frozenset(self._by_name)

    @property
    def has_routes(self) -> bool:
        return bool(self._by_route)

    def find(self, *names: str) -> Price | None:
        """What `[prices]` says of the first of these names that it knows: a deployment's id, "provider/model", "model"."""
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        return None

    def find_route(self, method: str, path: str) -> Price | None:
        """The price per call of a route, by `[prices."POST /v1/path/*"]`."""
        path = fold(path)  # no spelling of a path may have the price of another pattern
        for wanted_method, pattern, price in self._by_route:
            if method == wanted_method and fnmatch.fnmatchcase(path, pattern):
                return price
        return None


def find_facts(model: str, *, kind: str, provider: str, base_url: str | None) -> ModelFacts | None:
    """What the built-in table knows of a model at an upstream, known by its URL, else by its configured name, else by its kind.

    A model that such a vendor does not list, or an unknown vendor: the makers' own price, where a maker has a model of this name."""
    if kind == "demo":
        return None
    vendors = _vendors()
    name = model.lower()
    vendor = _find_vendor(kind, provider, base_url)
    tried = [vendor, *vendors[vendor]["falls_back"]] if vendor is not None else []
    for id in [*tried, *(maker for maker in _MAKERS if maker not in tried)]:
        for row in vendors[id]["models"] if id in vendors else ():
            if any(_matches(match, name) for match in row[0]):
                return _facts(row)
    return None


@lru_cache(maxsize=256)
def _find_vendor(kind: str, provider: str, base_url: str | None) -> str | None:
    vendors = _vendors()
    for id, vendor in vendors.items():
        if base_url is not None and re.match(vendor["url"], base_url):
            return id
    if provider.lower() in vendors:
        return provider.lower()
    # Kind "openai" says which wire is spoken, not who answers, unless there is no other address.
    return kind if kind in vendors and (kind != "openai" or base_url is None) else None


def _matches(match: str, name: str) -> bool:
    sign, text = match[0], match[1:]
    if sign == "=":
        return name == text
    if sign == "^":
        return name.startswith(text)
    if sign == "$":
        return name.endswith(text)
    if sign == "*":
        return text in name
    return re.search(text, name) is not None


def _facts(row: Sequence[Any]) -> ModelFacts:
    cells = [*row, *[None] * 8]
    tiers = tuple((tier[0], _price(tier[1:])) for tier in cells[6] or ())
    price = replace(
        _price(cells[1:5], tiers),
        audio_input_picousd=cells[7],
        audio_output_picousd=cells[8],
        source=f"built-in {_table()['as_of']}",
    )
    return ModelFacts(price, cells[5])


def _price(cells: Sequence[int | None], tiers: tuple[tuple[int, Price], ...] = ()) -> Price:
    input, output, cached, cache_write = cells
    return Price(input or 0, output or 0, cached, cache_write, tiers=tiers)


def _vendors() -> Mapping[str, Any]:
    vendors: Mapping[str, Any] = _table()["providers"]
    return vendors


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Any]:
    """The built-in table, read at first use (about 2 ms) and kept: reloads and unknown names ask it again."""
    table: Mapping[str, Any] = orjson.loads(resources.files("hookline").joinpath("data/prices.json").read_bytes())
    return table
