#!/usr/bin/env python3
"""Make src/hookline/data/prices.json from the `genai-prices` package: `.venv/bin/python scripts/refresh_prices.py`.

Lives here: decimals and match clauses -> integers and short strings. Elsewhere: how the table is read (src/hookline/prices.py).
Idea: reading the package takes 300 ms and 12 MiB, so it happens here, once, and the server reads a compact file; what is written is the price that
holds on the day of the refresh, and the dearest one where it depends on the hour.

A row of a provider's `models` is [matches, input, output, cached, cache_write, context_tokens, tiers, audio_input, audio_output]: pico-dollars per token, null = no own price.
A match is "=equals", "^starts", "$ends", "*contains" or "~regex"; a tier is [above this many input tokens, input, output, cached, cache_write]."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from genai_prices import data
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
)

TARGET = Path(__file__).parents[1] / "src/hookline/data/prices.json"
PICO_PER_USD_PER_MTOK = 1_000_000
KEYS = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
AUDIO_KEYS = ("input_audio_mtok", "output_audio_mtok")
# Subscriptions and non-LLM services: nobody points a gateway at them by token price.
LEFT_OUT = frozenset({"cursor", "github-copilot", "elevenlabs", "typesafe", "openai-decisions"})


def main() -> None:
    table = {provider.id: provider_row(provider) for provider in data.providers if provider.id not in LEFT_OUT}
    rows = ",\n".join(f"{json.dumps(name)}:{compact(row)}" for name, row in table.items())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    TARGET.write_text(f'{{"as_of":"{today}","providers":{{\n{rows}\n}}}}\n', encoding="utf-8")
    models = sum(len(row["models"]) for row in table.values())
    print(f"{TARGET}: {len(table)} providers, {models} models, {TARGET.stat().st_size} bytes")


def provider_row(provider: Provider) -> dict[str, Any]:
    rows = [row for model in provider.models if (row := model_row(model)) is not None]
    return {"url": provider.api_pattern, "falls_back": provider.fallback_model_providers or [], "models": rows}


def model_row(model: ModelInfo) -> list[Any] | None:
    """None where nothing is priced per token."""
    prices = price_of_the_day(model)
    values = [getattr(prices, key) for key in KEYS]
    if values[0] is None and values[1] is None:
        return None
    starts = sorted({tier.start for value in values if isinstance(value, TieredPrices) for tier in value.tiers})
    row: list[Any] = [list(matches(model.match)), *(pico(at(value, 0)) for value in values), model.context_window]
    row.append([[start, *(pico(at(value, start + 1)) for value in values)] for start in starts] or None)
    row += [pico(at(getattr(prices, key), 0)) for key in AUDIO_KEYS]
    while row[-1] is None:
        row.pop()
    return row


def price_of_the_day(model: ModelInfo) -> ModelPrice:
    if isinstance(model.prices, ModelPrice):
        return model.prices
    now = datetime.datetime.now(datetime.UTC)
    dated = [
        p.prices
        for p in model.prices
        if p.constraint is None or (isinstance(p.constraint, StartDateConstraint) and p.constraint.active(now))
    ]
    hourly = [
        p.prices for p in model.prices if p.constraint is not None and not isinstance(p.constraint, StartDateConstraint)
    ]
    return max(
        [dated[-1], *hourly] if dated else hourly, key=lambda p: at(p.output_mtok, 0) or at(p.input_mtok, 0) or 0
    )


def at(value: Decimal | TieredPrices | None, input_tokens: int) -> Decimal | None:
    """The price that holds for a call with that many input tokens."""
    if not isinstance(value, TieredPrices):
        return value
    prices = [value.base, *(tier.price for tier in value.tiers if input_tokens > tier.start)]
    return prices[-1]


def pico(usd_per_mtok: Decimal | None) -> int | None:
    """Rounded up: a price with more than six decimals does not exist today, and must never be undercharged."""
    return None if usd_per_mtok is None else -int(-usd_per_mtok * PICO_PER_USD_PER_MTOK // 1)


def matches(clause: Any) -> Iterable[str]:
    signs = {ClauseEquals: "=equals", ClauseStartsWith: "^starts_with", ClauseEndsWith: "$ends_with"}
    signs |= {ClauseContains: "*contains", ClauseRegex: "~regex"}
    if isinstance(clause, ClauseOr):
        for inner in clause.or_:
            yield from matches(inner)
    elif isinstance(clause, ClauseAnd):
        yield "~" + "".join(f"(?={as_regex(list(matches(inner)))})" for inner in clause.and_)
    else:
        sign = signs[type(clause)]
        yield sign[0] + getattr(clause, sign[1:])


def as_regex(alternatives: Sequence[str]) -> str:
    """One expression, to be searched from the start of a name, for what any of the matches finds."""
    ways = {"=": "{}$", "^": "{}", "$": ".*{}$", "*": ".*{}"}
    parts = [
        f".*(?:{text[1:]})" if text[0] == "~" else ways[text[0]].format(re.escape(text[1:])) for text in alternatives
    ]
    return "^(?:" + "|".join(parts) + ")"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    main()
