"""docs/reference/money.md against the code: every route of the OpenAI SDK goes through a hard budget."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from hookline import ENDPOINTS, Budget, Deployment, Price, Principal
from hookline.builtins import budget
from hookline.builtins.budget.rules import CHARGED_APART
from hookline.catalog import Catalog
from hookline.plugin_host import Stores
from hookline.prices import PriceTable
from hookline.stores.memory import MemoryLimits
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PRICE, PipelineKit, ScriptedProvider, answer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "money.md").read_text()
CALL_NANOUSD = 123_456_789
BUDGET = Budget(total_nanousd=10**15)
ROUTE = re.compile(r'self\._(get|post|delete|put|patch|get_api_list)\(\s*(?:path_template\()?f?"(/[^"?]*)')
NO_USAGE = b'{"id": "x", "choices": [], "data": [], "results": [], "output": []}'
BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
}


def sdk_routes() -> list[tuple[str, str]]:
    """(method, path) of what the SDK calls."""
    found = set()
    for file in (Path(openai.__file__).parent / "resources").rglob("*.py"):
        for method, path in ROUTE.findall(file.read_text()):
            name = "GET" if method.startswith("get") else method.upper()
            found.add(("POST" if path.endswith("/search") else name, "/v1" + re.sub(r"\{\w+\}", "x", path)))
    return sorted(found)


def documented() -> list[tuple[str, str, str]]:
    """(method, pattern, kind) of the table of routes, the most exact first."""
    section = PAGE.split("## Routes")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    found = [
        (*route.split(" ", 1), kind.strip()) for routes, kind in rows for route in re.findall(r"`([^`]+)`", routes)
    ]
    return sorted(found, key=lambda row: ("*" in row[1], -len(row[1])))


def kind_of(method: str, path: str) -> str:
    return next(
        kind for wanted, pattern, kind in documented() if method == wanted and fnmatch.fnmatchcase(path, pattern)
    )


@pytest.fixture(scope="module")
def page_routes() -> list[tuple[str, str]]:
    return sdk_routes()


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[SqliteRecords]:
    records = SqliteRecords(tmp_path / "ledger.db")
    yield records
    await records.aclose()


def make(records: Any, *, model: Price | None, has_route_prices: bool) -> PipelineKit:
    """A gateway whose model has this price, and whose routes have one per call or none."""
    clock = FakeClock()
    kit = PipelineKit(
        budget.Plugin,
        providers=[ScriptedProvider(lambda: answer(NO_USAGE))],
        stores=Stores(MemoryLimits(clock), None, records),  # type: ignore[arg-type]
        host_settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []},
        clock=clock,
    )
    prices = PriceTable({f"{method} /v1/*": Price(call_nanousd=CALL_NANOUSD) for method in ("POST", "PUT", "PATCH")})
    kit.pipeline.catalog = Catalog(
        {},
        providers=["up"],
        default_provider="up",
        build=lambda provider, name: Deployment(f"{provider}/{name}", provider, name, price=model if name else None),
        find_route_price=prices.find_route if has_route_prices else None,
    )
    return kit


async def ask(kit: PipelineKit, method: str, path: str) -> tuple[int, str, int]:
    """(status, error code and message, what is spent afterwards) of one call."""
    payload: Any = BODIES.get(path, {"model": "m", "input": "hi"})
    key = f"{method} {path}"  # one per route
    delivered = await kit.call(payload, method=method, path=path, principal=Principal(key_id=key, budget=BUDGET))
    (spent,) = await kit.workshop.stores.limits.held([f"key:{key}/total"])
    error = delivered.json().get("error") if delivered.status >= 400 else None
    return delivered.status, f"{error['code']}: {error['message']}" if error else "", spent


def test_the_sdk_has_routes_and_the_page_has_a_row_for_each(page_routes: list[tuple[str, str]]) -> None:
    assert len(page_routes) > 200
    assert {kind_of(method, path) for method, path in page_routes} == {"tokens", "call", "free"}
    assert {path for path in ENDPOINTS if kind_of("POST", path) != "tokens"} == set()


async def test_free_routes_cost_nothing_and_all_others_are_refused_without_a_price(
    page_routes: list[tuple[str, str]], records: SqliteRecords
) -> None:
    kit = make(records, model=None, has_route_prices=False)
    for method, path in page_routes:
        status, error, spent = await ask(kit, method, path)

        if kind_of(method, path) == "free":
            assert (status, spent) == (200, 0), (method, path)
        else:
            assert (status, error[:14]) == (400, "unpriced_route"), (method, path)
            assert f'[prices."{"m" if path in ENDPOINTS else f"{method} {path}"}"]' in error


async def test_a_price_by_tokens_bounds_the_routes_of_that_kind_and_no_others(
    page_routes: list[tuple[str, str]], records: SqliteRecords
) -> None:
    kit = make(records, model=PRICE, has_route_prices=False)
    for method, path in page_routes:
        kind = kind_of(method, path)
        status, error, spent = await ask(kit, method, path)

        assert (status, error[:14]) == ((400, "unpriced_route") if kind == "call" else (200, "")), (method, path)
        assert (spent > 0) == (kind == "tokens"), (method, path)


async def test_a_price_per_call_is_what_a_call_costs(
    page_routes: list[tuple[str, str]], records: SqliteRecords
) -> None:
    kit = make(records, model=PRICE, has_route_prices=True)
    for method, path in page_routes:
        kind = kind_of(method, path)
        status, _, spent = await ask(kit, method, path)

        assert status == 200, (method, path)
        if kind == "call":
            assert spent == CALL_NANOUSD, (method, path)
        assert (spent == 0) == (kind == "free"), (method, path)


@pytest.mark.parametrize("field", [*CHARGED_APART, "max_tool_calls", "audio_input"])
def test_every_field_that_is_refused_is_on_the_page(field: str) -> None:
    assert f"`{field}`" in PAGE
