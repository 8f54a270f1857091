"""GET /admin/spend and /admin/ledger on a real ledger, through the routes' own handlers and once through a real server."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from hookline import BadRequest, LedgerEntry, Principal, RouteRequest
from hookline.builtins.spend_report import SpendReports
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.process import ProxyProcess

MIDNIGHT = 1_795_564_800.0  # 2026-11-25


@pytest.fixture
async def ask(tmp_path: Path):
    records = SqliteRecords(tmp_path / "records.db")
    for number, (user, model, cost, tags) in enumerate(
        (("ann", "a", 1_500_000_000, ()), ("ann", "b", 1, ("prod",)), ("=cmd()", "a", None, ("prod", "x")))
    ):
        records.book(
            LedgerEntry(
                f"row-{number}", f"call-{number}", MIDNIGHT + number * 4_000, "acme", "ci", user, model, f"up/{model}",
                "chat", "ok", 10, 5, 0, cost, cost is None, ("key:ci",), "v1", None, tags,
            )
        )  # fmt: skip
    routes: dict[str, Any] = {}

    async def find_principal(key: str) -> Principal | None:
        return Principal(key_id="ci") if key == "build" else None

    SpendReports(records, find_principal).register(
        lambda method, path, handler, access: routes.update({path: (handler, access)})
    )

    async def ask(path: str, query: str = "", **headers: str) -> Any:
        handler, access = routes[path]
        assert access == "admin"
        reply = await handler(RouteRequest("GET", path, query, headers, b"", True, True))
        assert reply.status == 200
        if reply.headers["content-type"].startswith("text/csv"):
            return list(csv.reader(io.StringIO(reply.body.decode())))
        return json.loads(reply.body)

    yield ask
    await records.aclose()


async def test_a_report_sums_by_what_is_asked(ask) -> None:
    answer = await ask("/admin/spend", "by=model,day&since=2026-11-25&until=2026-11-26T00:00:00Z")

    assert (answer["since"], answer["until"]) == ("2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z")
    assert answer["data"] == [
        {
            "model": "a", "day": "2026-11-25T00:00:00Z", "calls": 2, "input_tokens": 20, "output_tokens": 10,
            "cached_tokens": 0, "cost_usd": "1.50", "cost_nanousd": 1_500_000_000, "unpriced_calls": 1,
            "estimated_calls": 1,
        },
        {
            "model": "b", "day": "2026-11-25T00:00:00Z", "calls": 1, "input_tokens": 10, "output_tokens": 5,
            "cached_tokens": 0, "cost_usd": "0.000000001", "cost_nanousd": 1, "unpriced_calls": 0, "estimated_calls": 0,
        },
    ]  # fmt: skip
    assert answer["has_more"] is False


async def test_filters_may_be_repeated_and_a_full_report_says_that_there_is_more(ask) -> None:
    assert (await ask("/admin/spend", "user=ann&user=bob"))["data"][0]["calls"] == 2
    assert (await ask("/admin/spend", "tag=prod&model=b"))["data"][0]["calls"] == 1
    limited = await ask("/admin/spend", "by=tag&limit=1")
    assert ([line["tag"] for line in limited["data"]], limited["has_more"]) == (["prod"], True)


async def test_csv_has_one_line_per_sum_and_no_formulas(ask) -> None:
    lines = await ask("/admin/spend", "by=user&format=csv")

    assert lines[0][:3] == ["user", "calls", "input_tokens"]
    assert [line[0] for line in lines[1:]] == ["ann", "'=cmd()"]
    assert lines == await ask("/admin/spend", "by=user", accept="text/csv")
    assert len(await ask("/admin/ledger", "format=csv")) == 4


async def test_ledger_rows_come_page_by_page(ask) -> None:
    first = await ask("/admin/ledger", "limit=2&tenant=acme")
    second = await ask("/admin/ledger", f"limit=2&tenant=acme&after={first['last_id']}")

    assert [row["id"] for row in (*first["data"], *second["data"])] == ["row-2", "row-1", "row-0"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert second["data"][0] == {
        "id": "row-0", "call_id": "call-0", "at": "2026-11-25T00:00:00Z", "tenant": "acme", "key": "ci", "user": "ann",
        "model": "a", "deployment": "up/a", "endpoint": "chat", "outcome": "ok", "input_tokens": 10, "output_tokens": 5,
        "cached_tokens": 0, "cost_usd": "1.50", "cost_nanousd": 1_500_000_000, "is_estimated": False,
        "price_version": "v1", "corrects": None, "tags": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "query", "told"),
    [
        ("/admin/spend", "tennant=acme", '"tennant": unknown parameter; did you mean "tenant"?'),
        (
            "/admin/spend",
            "by=modle",
            '"by": must be "tenant", "key", "user", "model", "deployment", "tag", "hour" or "day"; did you mean "model"?',
        ),
        ("/admin/spend", "by=day,hour", "each name once, and one of hour and day"),
        ("/admin/spend", "by=model,model", "each name once"),
        ("/admin/spend", "by=hour", "by hour at most 8 days: give since and until"),
        ("/admin/spend", "since=yesterday", '"since": must be Unix seconds, or a moment as in 2026-11-01'),
        ("/admin/spend", "since=99999-01-01", '"since": must be Unix seconds'),
        ("/admin/spend", "since=2026-11-02&until=2026-11-01", '"until": must be a moment after since'),
        ("/admin/spend", "since=2026-11-02&since=2026-11-03", '"since": is given twice; keep one'),
        ("/admin/spend", "limit=0", '"limit": must be greater than or equal to 1'),
        ("/admin/spend", "limit=%C2%B2", "must be a whole number"),
        ("/admin/spend", "format=xml", '"format": must be "json" or "csv"'),
        ("/admin/spend", "user=%00", '"user": must hold no NUL characters'),
        ("/admin/spend", "user=%ff", "the query must be UTF-8"),
        ("/admin/ledger", "by=model", '"by": unknown parameter'),
        ("/admin/ledger", "limit=1001", "must be less than or equal to 1000"),
        ("/admin/ledger", "after=abc", '"after": must be what an answer gave as `last_id`'),
        ("/admin/ledger", "after=1~", "must be what an answer gave"),
    ],
)
async def test_what_is_not_understood_is_refused_by_name(ask, path: str, query: str, told: str) -> None:
    with pytest.raises(BadRequest) as raised:
        await ask(path, query)

    assert told in raised.value.message
    assert raised.value.error_code == "invalid_parameter"


def test_only_the_admin_key_reads_what_was_spent(tmp_path: Path) -> None:
    text = """
[server]
port = 0
[admin]
key = "sk-admin"
[chain]
plugins = ["budget"]
[providers.demo]
kind = "demo"
default = true
[prices."demo/echo"]
call = 0.5
"""
    with ProxyProcess(tmp_path, text) as proxy:
        body = {"model": "demo/echo", "messages": [{"role": "user", "content": "hi"}]}
        call = urllib.request.Request(f"{proxy.base_url}/v1/chat/completions", json.dumps(body).encode())
        call.add_header("content-type", "application/json")
        urllib.request.urlopen(call).read()
        for path in ("/admin/spend?by=model", "/admin/ledger"):
            with pytest.raises(HTTPError) as refused:
                urllib.request.urlopen(f"{proxy.base_url}{path}")
            assert refused.value.code == 401
            shown = urllib.request.Request(f"{proxy.base_url}{path}", headers={"authorization": "Bearer sk-admin"})
            answer = json.load(urllib.request.urlopen(shown))
            assert [line["cost_usd"] for line in answer["data"]] == ["0.50"], answer


async def test_a_key_may_be_named_by_its_id_or_its_name(ask: Any) -> None:
    by_id, by_name, of_nobody = [(await ask("/admin/ledger", f"key={key}"))["data"] for key in ("ci", "build", "other")]

    assert by_id == by_name
    assert len(by_id) == 3
    assert of_nobody == []
    assert (await ask("/admin/spend", "key=build"))["data"] == (await ask("/admin/spend", "key=ci"))["data"]
