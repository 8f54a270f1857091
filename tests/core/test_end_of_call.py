"""The end of a call, in order and once: attempt ends, `attempt_ended`, its tickets, the held last bytes, the call's tickets, `call_ended`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from hookline import Fallback, Rejected, Reply, Unavailable, UpstreamError, Usage
from hookline.pipeline_settings import PipelineSettings
from hookline.testing.kit import ANSWER, CHAT, Delivered, PipelineKit, ScriptedProvider, answer, make_plugin, stream

STREAMED = {**CHAT, "stream": True}
COST = 20_000
"""10 tokens at 1 and 5 at 2 USD per million, in nano-dollars."""


class Client(Delivered):
    """A client that writes what it receives into the journal."""

    def __init__(self, journal: Any, **more: Any) -> None:
        super().__init__(**more)
        self._journal = journal

    async def _write(self, chunk: bytes) -> None:
        await super()._write(chunk)
        self._journal.append(f"client {chunk.decode()[:40].strip()}")


def takes(journal: Any, name: str, settle: Callable[[], Any] | None = None) -> type:
    """A plugin that takes a ticket for the call and one for each attempt."""
    return make_plugin(
        name,
        admit=lambda call: journal.ticket(f"call {name}", settle),
        admit_attempt=lambda call, target, attempt: journal.ticket(f"attempt {name} {attempt.number}", settle),
    )


def make_kit(
    journal: Any, *scripts: Any, settle: Any = None, plugins: tuple[type, ...] = (), **more: Any
) -> PipelineKit:
    return PipelineKit(
        journal.observer("watch"), takes(journal, "a", settle), takes(journal, "b", settle), *plugins,
        providers=[ScriptedProvider(*scripts)], **more,
    )  # fmt: skip


ATTEMPT_END = ["attempt_ended watch 1", "settle attempt b 1", "settle attempt a 1"]
CALL_END = ["settle call b", "settle call a"]


# -- the order


@pytest.mark.parametrize("is_async", [False, True])
async def test_bytes_leave_between_the_attempts_tickets_and_the_calls(is_async: bool, journal: Any) -> None:
    kit = make_kit(journal, answer, settle=(lambda: asyncio.sleep(0)) if is_async else None)

    await kit.run(kit.make_call(), Client(journal))

    assert journal == [*ATTEMPT_END, f"client {ANSWER.decode()[:40]}", *CALL_END, "call_ended watch ok"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_held_end_of_a_stream_leaves_after_the_attempts_tickets_settled(
    is_async: bool, journal: Any, wire: Any
) -> None:
    first, finish = wire.chunk("ho"), wire.chunk(finish="stop")
    settle = (lambda: asyncio.sleep(0)) if is_async else None
    kit = make_kit(journal, lambda: stream(first, finish, wire.usage, wire.done), settle=settle)

    delivered = await kit.run(kit.make_call(STREAMED), Client(journal))

    assert journal == [
        f"client {first.decode()[:40]}",
        f"client {finish.decode()[:40]}",
        *ATTEMPT_END,
        f"client {wire.usage.decode()[:40]}",
        *CALL_END,
        "call_ended watch ok",
    ]
    assert delivered.body == first + finish + wire.usage + wire.done


@pytest.mark.parametrize("is_async", [False, True])
async def test_async_observers_keep_the_order(is_async: bool, journal: Any) -> None:
    async def attempt_ended(call: Any, attempt: Any) -> None:
        await asyncio.sleep(0)
        journal.append("attempt_ended slow")

    async def call_ended(call: Any, result: Any) -> None:
        await asyncio.sleep(0)
        journal.append("call_ended slow")

    slow = make_plugin("slow", attempt_ended=attempt_ended, call_ended=call_ended)
    kit = make_kit(journal, answer, plugins=(slow,), settle=(lambda: asyncio.sleep(0)) if is_async else None)

    await kit.call()

    assert journal == ["attempt_ended slow", *ATTEMPT_END, *CALL_END, "call_ended slow", "call_ended watch ok"]


async def test_a_cache_hit_ends_without_an_attempt_and_costs_nothing(journal: Any) -> None:
    hit = make_plugin("cache", lookup=lambda call: Reply(200, {}, b"{}", source="cache"))
    kit = make_kit(journal, answer, plugins=(hit,))

    await kit.run(kit.make_call(), Client(journal))

    assert journal == ["client {}", *CALL_END, "call_ended watch ok"]
    result = journal.results["call a"][0]
    assert (result.outcome, result.source, result.cost_nanousd, result.usage) == ("ok", "cache", 0, None)
    assert not result.is_estimated


async def test_a_failed_attempts_tickets_settle_before_the_next_attempt_is_admitted(journal: Any) -> None:
    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        journal.append(f"admit_attempt {attempt.number}")

    kit = make_kit(
        journal,
        UpstreamError("refused", kind="connect", is_written=False),
        answer,
        plugins=(
            make_plugin("z", admit_attempt=admit_attempt),
            make_plugin("fallback", after_failure=lambda call, attempt: Fallback()),
        ),
        settle=lambda: asyncio.sleep(0),
        deployments={"m": ["up/1", "up/2"]},
    )

    await kit.call({**CHAT, "model": "m"})

    assert journal == [
        "admit_attempt 1",
        *ATTEMPT_END,
        "admit_attempt 2",
        *(line.replace("1", "2") for line in ATTEMPT_END),
        *CALL_END,
        "call_ended watch ok",
    ]
    assert journal.results["attempt a 1"][0].outcome == "upstream_error"
    assert journal.results["attempt a 1"][0].cost_nanousd == 0
    assert journal.results["call a"][0].cost_nanousd == COST


async def test_an_error_that_is_passed_on_settles_before_it_leaves(journal: Any) -> None:
    kit = make_kit(journal, lambda: answer(b'{"error":{"message":"slow down"}}', 429, **{"retry-after": "3"}))

    delivered = await kit.run(kit.make_call(), Client(journal))

    assert journal == [
        *ATTEMPT_END, 'client {"error":{"message":"slow down"}}', *CALL_END, "call_ended watch upstream_error",
    ]  # fmt: skip
    assert (delivered.status, delivered.headers["retry-after"]) == (429, "3")
    assert delivered.headers["x-hookline-deployment"] == "up/m"
    assert delivered.headers["x-hookline-attempts"] == "1"
    result = journal.results["call a"][0]
    assert (result.status, result.cost_nanousd, result.source) == (429, 0, "upstream")


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_before_admission_ends_the_call_with_call_ended_alone(is_async: bool, journal: Any) -> None:
    kit = make_kit(journal, answer)

    delivered = await kit.call({"messages": []})

    assert delivered.status == 400
    assert journal == ["call_ended watch rejected"]


async def test_final_usage_and_cost_reach_tickets_and_observers(journal: Any, wire: Any) -> None:
    kit = make_kit(journal, lambda: stream(wire.chunk("ho"), wire.chunk(finish="stop"), wire.usage, wire.done))

    await kit.call(STREAMED)

    for who in ("attempt a 1", "attempt b 1", "call a", "call b", "call_ended watch"):
        (result,) = journal.results[who]
        assert (result.outcome, result.source, result.status) == ("ok", "upstream", 200), who
        assert (result.usage, result.cost_nanousd, result.is_estimated) == (Usage(10, 5), COST, False), who


async def test_the_cost_is_unknown_where_no_price_is_and_zero_only_where_nothing_was_served(journal: Any) -> None:
    kit = make_kit(journal, answer, price=None)

    await kit.call()

    result = journal.results["call_ended watch"][0]
    assert (result.usage, result.cost_nanousd) == (Usage(10, 5), None)


# -- the client goes


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_client_gone_mid_stream_ends_everything_once_with_what_was_seen(
    is_async: bool, journal: Any, wire: Any
) -> None:
    closed: list[str] = []
    kit = make_kit(
        journal,
        lambda: stream(wire.chunk("one"), asyncio.Event(), closed=closed),
        settle=(lambda: asyncio.sleep(0)) if is_async else None,
    )
    running = kit.start(kit.make_call(STREAMED))
    await running.delivered.has_begun.wait()

    running.leave()
    await running.done()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch client_gone"]
    assert closed == ["closed"]
    result = journal.results["call a"][0]
    assert result.usage is not None
    assert result.usage.is_estimated
    assert result.is_estimated
    assert result.usage.output_tokens == len("one")


async def test_a_write_that_fails_mid_stream_ends_the_call_as_if_the_client_had_said_so(
    journal: Any, wire: Any
) -> None:
    closed: list[str] = []
    kit = make_kit(journal, lambda: stream(wire.chunk("one"), wire.chunk("two"), wire.done, closed=closed))

    await kit.run(kit.make_call(STREAMED), Delivered(gone_after=1))

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch client_gone"]
    assert closed == ["closed"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_write_that_fails_after_settlement_changes_the_outcome_and_never_the_money(
    is_stream: bool, journal: Any, wire: Any
) -> None:
    events = (wire.chunk("ho"), wire.chunk(finish="stop"), wire.usage, wire.done)
    kit = make_kit(journal, lambda: stream(*events) if is_stream else answer())

    await kit.run(kit.make_call(STREAMED if is_stream else CHAT), Delivered(gone_after=2 if is_stream else 0))

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch client_gone"]
    attempt, call = journal.results["attempt a 1"][0], journal.results["call a"][0]
    assert (attempt.outcome, attempt.cost_nanousd, attempt.is_estimated) == ("ok", COST, False)
    assert (call.outcome, call.cost_nanousd, call.is_estimated) == ("client_gone", COST, False)


# -- tickets that misbehave


async def test_a_settle_that_raises_is_logged_and_counted_and_the_others_still_run(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("the store is gone")

    kit = make_kit(journal, answer, settle=fail)

    delivered = await kit.call()

    assert delivered.status == 200
    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch ok"]
    assert kit.metric("hookline_settle_errors_total") == 4
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert told == ["call req_1: _Ticket did not settle: OSError: the store is gone"] * 4


async def test_an_async_settle_that_raises_is_no_different(journal: Any) -> None:
    async def fail() -> None:
        raise OSError("the store is gone")

    kit = make_kit(journal, answer, settle=fail)

    await kit.call()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch ok"]
    assert kit.metric("hookline_settle_errors_total") == 4


async def test_a_settle_whose_own_task_was_cancelled_is_no_different(journal: Any) -> None:
    async def fail() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    kit = make_kit(journal, answer, settle=fail)

    await kit.call()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch ok"]
    assert kit.metric("hookline_settle_errors_total") == 4


async def test_a_settle_that_hangs_is_left_to_expiry_after_its_time(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kit = make_kit(
        journal, answer, settle=lambda: asyncio.Event().wait(), settings=PipelineSettings(settle_timeout_s=0.01)
    )

    delivered = await kit.call()

    assert delivered.status == 200
    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch ok"]
    assert kit.metric("hookline_settle_errors_total") == 4
    assert "did not settle: no answer within 0.01 s" in caplog.text


async def test_a_ticket_that_cannot_settle_at_all_is_no_different(journal: Any) -> None:
    odd = type("Odd", (), {"settle": "not a function"})
    kit = make_kit(journal, answer, plugins=(make_plugin("odd", admit=lambda call: odd()),))

    await kit.call()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch ok"]
    assert kit.metric("hookline_settle_errors_total") == 1


# -- cancelled while it ends


class Gated:
    """A `settle` that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()

    async def __call__(self) -> None:
        self.entered.set()
        await self.gate.wait()


@pytest.mark.parametrize("cancels", [1, 2, 3])
@pytest.mark.parametrize("gated", ["attempt b", "attempt a", "call b", "call a"])
async def test_cancelled_during_an_async_settle_everything_still_settles_once_and_in_order(
    gated: str, cancels: int, journal: Any, tick: Any
) -> None:
    """A shutdown cancels tasks again and again; money must not depend on how often."""
    slow, where = Gated(), gated.split()

    def takes_one(name: str) -> type:
        def settle(kind: str) -> Any:
            return slow if [kind, name] == where else None

        return make_plugin(
            name,
            admit=lambda call: journal.ticket(f"call {name}", settle("call")),
            admit_attempt=lambda call, target, attempt: journal.ticket(f"attempt {name} 1", settle("attempt")),
        )

    kit = PipelineKit(journal.observer("watch"), takes_one("a"), takes_one("b"))
    running = kit.start()
    await slow.entered.wait()

    for _ in range(cancels):
        running.task.cancel()
        await tick()
    slow.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running.done()
    await kit.pipeline.drained()

    outcome = "shutdown" if where[0] == "attempt" else "ok"
    assert journal == [*ATTEMPT_END, *CALL_END, f"call_ended watch {outcome}"]
    assert kit.pipeline.running == 0
    assert kit.metric("hookline_settle_errors_total") == 0


async def test_a_client_that_leaves_during_an_attempts_settlement_is_gone_and_the_money_is_right(journal: Any) -> None:
    slow = Gated()
    kit = make_kit(journal, answer, settle=slow)
    running = kit.start()
    await slow.entered.wait()

    running.leave()
    slow.gate.set()
    await running.done()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch client_gone"]
    assert journal.results["attempt a 1"][0].cost_nanousd == COST
    assert journal.results["call a"][0].cost_nanousd == COST


async def test_a_hook_that_hangs_in_the_first_end_does_not_cost_the_second_its_steps(journal: Any, tick: Any) -> None:
    """Symptom: both ends shared a timer slot, so the late hook of one cancelled the task of the other."""
    entered = asyncio.Event()

    async def hang(call: Any, attempt: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    kit = make_kit(
        journal,
        UpstreamError("refused", kind="connect"),
        plugins=(make_plugin("z1", attempt_ended=hang), make_plugin("z2", attempt_ended=hang)),
        settle=lambda: asyncio.sleep(0),
        hook_timeout_s=0.02,
    )
    running = kit.start()
    await entered.wait()

    running.leave()
    await running.done()

    assert journal == [*ATTEMPT_END, *CALL_END, "call_ended watch client_gone"]
    assert kit.metric("hookline_hook_errors_total", hook="attempt_ended") > 0


async def test_two_live_attempts_both_end_when_a_cancel_hits_the_first_ones_settlement(journal: Any, tick: Any) -> None:
    slow, asked = Gated(), asyncio.Event()

    async def hang(call: Any, attempt: Any) -> Reply:
        if attempt.number == 2:
            asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    def select(call: Any, targets: Any) -> Any:
        for target in targets:
            target.hedge_after_s = 0.0
        return targets

    kit = make_kit(
        journal, hang, plugins=(make_plugin("hedge", select=select),), settle=slow, deployments={"m": ["up/1", "up/2"]}
    )
    running = kit.start(kit.make_call({**CHAT, "model": "m"}))
    await asked.wait()
    running.leave()
    await slow.entered.wait()

    running.task.cancel()
    await tick()
    slow.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running.done()
    await kit.pipeline.drained()

    second = [line.replace("1", "2") for line in ATTEMPT_END]
    assert journal == [*ATTEMPT_END, *second, *CALL_END, "call_ended watch client_gone"]


# -- attempts that never were


@pytest.mark.parametrize("how", ["rejected", "client_gone", "timeout"])
async def test_an_attempt_that_was_not_admitted_gives_back_what_it_took_and_casts_no_vote(
    how: str, journal: Any
) -> None:
    """Symptom: a call that ended inside admit_attempt was observed as an attempt without an error: a vote for health."""
    entered = asyncio.Event()

    async def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        entered.set()
        if how == "rejected":
            raise Rejected(Unavailable("the budget store is down"))
        if how == "timeout":
            PipelineKit.expire(call)
        await asyncio.Event().wait()

    kit = make_kit(journal, answer, plugins=(make_plugin("z", admit_attempt=admit_attempt),))
    running = kit.start()
    await entered.wait()
    if how == "client_gone":
        running.leave()
    await running.done()

    assert journal == ["settle attempt b 1", "settle attempt a 1", *CALL_END, f"call_ended watch {how}"]
    result = journal.results["call_ended watch"][0]
    assert (result.cost_nanousd, result.is_estimated, result.attempt) == (0, False, None)
    assert kit.providers["up"].sent == []


async def test_the_end_is_reached_from_a_failure_of_the_gateway_itself(journal: Any, monkeypatch: Any) -> None:
    kit = make_kit(journal, answer)

    def broken(name: str, call: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(kit.pipeline.catalog, "resolve", broken)

    delivered = await kit.call()

    assert (delivered.status, delivered.json()["error"]["message"]) == (500, "the gateway failed; see its log")
    assert journal == ["call_ended watch internal_error"]
