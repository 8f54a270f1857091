"""Hedging: which calls may be sent twice, when, and how often."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from hookline import Deployment, Skip, Target
from hookline.builtins import fallback, hedging
from hookline.builtins.hedging import WINDOW, Bucket, FirstBytes, HedgingOptions, Plugin, why_not_twice
from hookline.errors import UpstreamError
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, make_plugin

CHAT = {"model": "m", "messages": []}


def targets(*names: str) -> list[Target]:
    return [Target(Deployment(f"up/{name}", "up", name)) for name in names]


@pytest.mark.parametrize(
    ("path", "payload", "word"),
    [
        ("/v1/chat/completions", CHAT, None),
        ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, None),
        ("/v1/chat/completions", {**CHAT, "store": True}, "stored"),
        ("/v1/embeddings", {"model": "m", "input": "x"}, None),
        ("/v1/responses", {"model": "m", "input": "x"}, "stored"),
        ("/v1/responses", {"model": "m", "input": "x", "store": False}, None),
        ("/v1/responses", {"model": "m", "store": False, "background": True}, "background"),
        ("/v1/responses", {"model": "m", "store": False, "previous_response_id": "r"}, "previous_response_id"),
        ("/v1/responses", {"model": "m", "store": False, "tools": [{"type": "mcp"}]}, '"mcp"'),
        ("/v1/images/generations", {"model": "m", "prompt": "x"}, "leave something behind"),
    ],
)
def test_only_what_leaves_nothing_behind_is_sent_twice(
    path: str, payload: dict[str, Any], word: str | None, make_call: Callable[..., Any]
) -> None:
    call = make_call(payload, path=path)
    plugin_targets = targets("1", "2")

    why = why_not_twice(call)

    assert (word in why) if word is not None else why is None, why
    assert len(plugin_targets) == 2


def test_a_percentile_is_exact_over_the_last_window() -> None:
    seen, draw, all_of_them = FirstBytes(), random.Random(3), []
    for _ in range(3 * WINDOW):
        all_of_them.append(draw.lognormvariate(0, 1))
        seen.add(all_of_them[-1])

    assert len(seen) == WINDOW
    assert seen.percentile(0.95) == sorted(all_of_them[-WINDOW:])[int(0.95 * WINDOW)]


def test_twenty_calls_buy_one_hedge() -> None:
    bucket = Bucket(0.05)
    while bucket.take():
        pass
    bought = 0
    for _ in range(200):
        bucket.add_call()
        bought += bucket.take()

    assert bought == 10


def test_a_fixed_delay_holds_until_the_deployment_is_known(
    make_host: Any, make_call: Any, make_attempt: Any, clock: Any
) -> None:
    plugin = Plugin(HedgingOptions(after_s=2.0, min_samples=10), make_host())
    assert [t.hedge_after_s for t in plugin.select(make_call(CHAT), targets("1", "2"))] == [2.0, 2.0]

    for _ in range(10):
        attempt = make_attempt("up/1")
        attempt.first_byte_at = attempt.started_at + 0.3
        plugin.attempt_ended(make_call(CHAT), attempt)

    first, second = plugin.select(make_call(CHAT), targets("1", "2"))
    assert first.hedge_after_s == pytest.approx(0.3)
    assert second.hedge_after_s == 2.0
    assert plugin.select(make_call({**CHAT, "stream": True}), targets("1", "2"))[0].hedge_after_s == 2.0


def test_without_a_percentile_the_delay_stays_what_was_said(make_host: Any, make_call: Any, make_attempt: Any) -> None:
    plugin = Plugin(HedgingOptions(percentile=0, after_s=2.0, min_samples=10), make_host())
    for _ in range(10):
        attempt = make_attempt("up/1")
        attempt.first_byte_at = attempt.started_at + 0.3
        plugin.attempt_ended(make_call(CHAT), attempt)

    assert [t.hedge_after_s for t in plugin.select(make_call(CHAT), targets("1", "2"))] == [2.0, 2.0]


def test_a_loser_counts_as_slow_as_it_was_and_a_failure_says_nothing(
    make_host: Any, make_call: Any, make_attempt: Any
) -> None:
    plugin = Plugin(HedgingOptions(min_samples=10), make_host())
    for number in range(20):
        attempt = make_attempt("up/1", latency_s=9.0)
        attempt.is_loser = number % 2 == 0
        if not attempt.is_loser:
            attempt.error = UpstreamError("no", kind="connect")
        plugin.attempt_ended(make_call(CHAT), attempt)

    assert plugin.select(make_call(CHAT), targets("1", "2"))[0].hedge_after_s == pytest.approx(9.0)


def test_one_target_a_model_without_hedges_and_a_call_for_once_are_left_alone(make_host: Any, make_call: Any) -> None:
    host = make_host(options_by_model={"calm": HedgingOptions(max_per_call=0)})
    plugin = Plugin(HedgingOptions(after_s=1.0), host)

    assert plugin.select(make_call(CHAT), targets("1"))[0].hedge_after_s is None
    assert plugin.select(make_call({**CHAT, "model": "calm"}), targets("1", "2"))[0].hedge_after_s is None
    assert plugin.select(make_call({**CHAT, "store": True}), targets("1", "2"))[0].hedge_after_s is None


def test_a_hedge_that_was_never_sent_gives_its_token_back(
    make_host: Any, make_call: Any, make_attempt: Any, make_result: Any
) -> None:
    plugin = Plugin(HedgingOptions(after_s=1.0, budget=1.0), make_host())
    hedge = make_attempt("up/2")
    hedge.is_hedge = True
    ticket = plugin.admit_attempt(make_call(CHAT), hedge.target, hedge)
    assert ticket is not None

    ticket.settle(make_result(hedge, outcome="rejected"))

    again = plugin.admit_attempt(make_call(CHAT), hedge.target, hedge)
    assert again is not None
    again.settle(make_result(hedge))
    with pytest.raises(Skip, match="hedge budget of 100% of calls"):
        plugin.admit_attempt(make_call(CHAT), hedge.target, hedge)


def test_a_deployment_of_weight_0_gets_no_hedge(make_host: Any, make_call: Any, make_attempt: Any) -> None:
    plugin = Plugin(HedgingOptions(after_s=1.0, budget=1.0), make_host())
    hedge = make_attempt("up/2")
    hedge.is_hedge = True
    hedge.target = Target(Deployment("up/2", "up", "2", weight=0.0))

    with pytest.raises(Skip, match="only for when others fail"):
        plugin.admit_attempt(make_call(CHAT), hedge.target, hedge)


async def test_a_hedge_that_may_not_be_made_leaves_its_target_for_the_fallback() -> None:
    late = asyncio.Event()
    refuses = make_plugin("late", admit_attempt=lambda call, target, attempt: late.set() if attempt.is_hedge else None)

    async def fails_late(call: Any, attempt: Any) -> Any:
        await late.wait()
        raise UpstreamError("no", kind="connect", is_written=False)

    kit = PipelineKit(
        refuses,
        hedging.Plugin,
        fallback.Plugin,
        providers=[ScriptedProvider(fails_late, answer)],
        deployments={"m": ["up/1", "up/2"]},
        options={"hedging": {"after_s": 0.0, "budget": 0.0}},
    )
    running = kit.start(kit.make_call(CHAT))
    delivered = await running.done()

    assert (delivered.status, delivered.headers["x-hookline-deployment"]) == (200, "up/2")
    assert [attempt.is_hedge for attempt in running.call.attempts] == [False, False]
    assert kit.metric("hookline_hedges_total", outcome="unaffordable") == 1


@pytest.mark.parametrize("options", [{"percentile": 0}, {"percentile": 0.3}, {"budget": 5}, {"min_samples": 500}])
def test_options_that_cannot_hedge_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HedgingOptions(**options)


async def test_a_hedge_whose_client_leaves_has_not_won() -> None:
    up = ScriptedProvider(lambda: asyncio.Event().wait(), lambda: asyncio.Event().wait())  # type: ignore[arg-type,return-value]
    kit = PipelineKit(
        hedging.Plugin,
        providers=[up],
        deployments={"m": ["up/1", "up/2"]},
        options={"hedging": {"after_s": 0.0, "budget": 1.0}},
    )
    running = kit.start(kit.make_call({**CHAT, "model": "m"}))
    while len(running.call.attempts) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)

    running.leave()
    await running.done()

    assert kit.metric("hookline_hedges_total", outcome="won") == 0
    assert kit.metric("hookline_hedges_total", outcome="lost") == 1
