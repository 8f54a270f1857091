from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest

from hookline.money import Price, Usage
from hookline.prices import PriceTable, find_facts, price_from_usd

DATA = Path(__file__).parents[1] / "src/hookline/data/prices.json"


def test_a_configured_price_is_an_exact_integer() -> None:
    price = price_from_usd(input=2.50, output=0.1, cached_input=0.075, call=0.02)

    assert price == Price(2_500_000, 100_000, 75_000, None, 20_000_000)


def test_more_than_six_decimals_are_rounded_up() -> None:
    assert price_from_usd(input=0.00000001).input_picousd == 1


def test_configured_names_are_asked_in_order() -> None:
    table = PriceTable({"gpt-4o": Price(1), "up/gpt-4o": Price(2)})

    assert table.find("blue", "up/gpt-4o", "gpt-4o") == Price(2)
    assert table.find("blue", "other/gpt-4o", "gpt-4o") == Price(1)
    assert table.find("other/x", "x") is None


@pytest.mark.parametrize(
    ("method", "path", "call_nanousd"),
    [
        ("POST", "/v1/images/generations", 5),
        ("POST", "/v1/images/edits", 5),
        ("POST", "/v1/audio/speech", 7),
        ("GET", "/v1/images/generations", None),
        ("POST", "/v1/image", None),
    ],
)
def test_a_route_has_a_price_per_call(method: str, path: str, call_nanousd: int | None) -> None:
    table = PriceTable({"POST /v1/images/*": Price(call_nanousd=5), "post /v1/audio/speech": Price(call_nanousd=7)})

    found = table.find_route(method, path)

    assert (found and found.call_nanousd) == call_nanousd


@pytest.mark.parametrize(
    ("kind", "provider", "base_url", "model"),
    [
        ("openai", "openai", None, "gpt-4o"),
        ("openai", "anything", "https://api.openai.com/v1", "gpt-4o-2024-08-06"),
        ("openai", "azure", "https://mine.openai.azure.com/openai", "gpt-4o"),
        ("openai", "proxy", "http://127.0.0.1:9/v1", "GPT-4o"),
    ],
)
def test_the_built_in_table_knows_a_model_at(kind: str, provider: str, base_url: str | None, model: str) -> None:
    facts = find_facts(model, kind=kind, provider=provider, base_url=base_url)

    assert facts is not None
    assert (facts.price.input_picousd, facts.price.output_picousd) == (2_500_000, 10_000_000)
    assert facts.context_tokens == 128_000


@pytest.mark.parametrize(("kind", "model"), [("openai", "llama3"), ("openai", "no-such"), ("demo", "gpt-4o")])
def test_nobody_guesses_the_price_of_open_weights_or_the_demo(kind: str, model: str) -> None:
    assert find_facts(model, kind=kind, provider="local", base_url="http://127.0.0.1:9/v1") is None


@pytest.mark.parametrize(
    ("vendor", "model", "usage"),
    [
        ("openai", "gpt-4o", Usage(1_000, 200)),
        ("openai", "gpt-5.4", Usage(1_000, 200, cached_tokens=300)),
        ("openai", "gpt-5.4", Usage(300_000, 200, cached_tokens=300)),
        ("openai", "text-embedding-3-small", Usage(10)),
        ("openai", "o3-mini-2025-01-31", Usage(7, 9)),
        ("anthropic", "claude-sonnet-4-5-20250929", Usage(200_000, 5, cached_tokens=10, cache_write_tokens=20)),
        ("anthropic", "claude-sonnet-4-5-20250929", Usage(200_001, 5, cached_tokens=10, cache_write_tokens=20)),
        ("anthropic", "claude-opus-4-6", Usage(250_000, 5)),
        ("google", "gemini-2.5-pro", Usage(250_000, 5)),
        ("openrouter", "anthropic/claude-3.5-haiku", Usage(1_000, 5)),
        ("groq", "llama-3.3-70b-versatile", Usage(1_000, 5)),
        ("azure", "gpt-4.1", Usage(1_000, 5)),
    ],
)
def test_a_cost_is_what_the_package_behind_the_table_says(vendor: str, model: str, usage: Usage) -> None:
    facts = find_facts(model, kind=vendor, provider=vendor, base_url=None)
    truth = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        ),
        model,
        provider_id=vendor,
        genai_request_timestamp=datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC),
    )

    assert facts is not None
    assert facts.price.cost_nanousd(usage) == -int(-truth.total_price * Decimal(10**9) // 1)


def test_the_table_stays_small() -> None:
    assert DATA.stat().st_size < 200_000
