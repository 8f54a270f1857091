"""A race: an attempt and its hedges, of which the first to begin a reply wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hookline import BadRequest, Fallback, Rejected, Reply, Skip, Target, Unavailable, UpstreamError
from hookline.testing.kit import ANSWER, CHAT, PipelineKit, ScriptedProvider, answer, make_plugin, stream

TWO = {"m": ["up/1", "up/2"]}
THREE = {"m": ["up/1", "up/2", "up/3"]}
ASKED = {**CHAT, "model": "m"}
STREAMED = {**ASKED, "stream": True}
FALLBACK = make_plugin("fallback", after_failure=lambda call, attempt: Fallback())


def refused(message: str = "refused") -> UpstreamError:
    return UpstreamError(message, kind="connect", is_written=False)


def hedging(after_s: float = 0.0) -> type:
    def select(call: Any, targets: Any) -> Any:
        for target in targets:
            target.hedge_after_s = after_s
        return targets

    return make_plugin("hedge", select=select)


class Race:
    """Upstreams that answer when they are told to, by attempt number."""

    def __init__(self) -> None:
        self.asked = [asyncio.Event() for _ in range(5)]
        self.answers: dict[int, asyncio.Future[Reply]] = {}
        self.cancelled: list[int] = []

    async def send(self, call: Any, attempt: Any) -> Reply:
        self.answers[attempt.number] = asyncio.get_running_loop().create_future()
        self.asked[attempt.number].set()
        try:
            return await self.answers[attempt.number]
        except asyncio.CancelledError:
            self.cancelled.append(attempt.number)
            raise


def race_kit(race: Race, journal: Any, *plugins: type, **more: Any) -> PipelineKit:
    taking = make_plugin("money", admit_attempt=lambda call, target, attempt: journal.ticket(str(attempt.number)))
    plugins = (journal.observer("watch"), hedging(), FALLBACK, taking, *plugins)
    return PipelineKit(*plugins, providers=[ScriptedProvider(race.send)], **{"deployments": THREE, **more})


@pytest.mark.parametrize("winner", [1, 2])
async def test_the_first_byte_wins_and_the_loser_is_cancelled_and_settles_before_the_winner(
    winner: int, journal: Any
) -> None:
    race = Race()
    kit = race_kit(race, journal, deployments=TWO)
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()

    race.answers[winner].set_result(answer())
    delivered = await running.done()

    loser = 3 - winner
    assert delivered.body == ANSWER
    assert delivered.headers["x-hookline-deployment"] == f"up/{winner}"
    assert delivered.headers["x-hookline-attempts"] == "2"
    assert race.cancelled == [loser]
    assert journal == [
        f"attempt_ended watch {loser}", f"settle {loser}", f"attempt_ended watch {winner}", f"settle {winner}",
        "call_ended watch ok",
    ]  # fmt: skip
    first, second = running.call.attempts
    assert (first.is_hedge, second.is_hedge) == (False, True)
    assert [attempt.is_loser for attempt in running.call.attempts] == [loser == 1, loser == 2]
    assert journal.results["call_ended watch"][0].attempt is running.call.attempts[winner - 1]


async def test_a_hedge_knows_that_it_is_one_when_it_is_admitted(journal: Any) -> None:
    race, seen = Race(), []

    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        seen.append(attempt.is_hedge)

    kit = race_kit(race, journal, make_plugin("z", admit_attempt=admit_attempt), deployments=TWO)
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()
    race.answers[1].set_result(answer())
    await running.done()

    assert seen == [False, True]


async def test_a_loser_that_finished_in_the_same_tick_is_closed(journal: Any) -> None:
    race, closed = Race(), []
    kit = race_kit(race, journal, deployments=TWO)
    running = kit.start(kit.make_call(STREAMED))
    await race.asked[2].wait()

    for number in (2, 1):
        race.answers[number].set_result(stream(b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n", closed=closed))
    delivered = await running.done()

    assert delivered.headers["x-hookline-deployment"] == "up/1"
    assert closed == ["closed", "closed"]
    assert journal[:2] == ["attempt_ended watch 2", "settle 2"]


async def test_a_failed_primary_leaves_the_race_to_its_hedge(journal: Any, tick: Callable[..., Any]) -> None:
    race = Race()
    kit = race_kit(race, journal, deployments=TWO)
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()

    race.answers[1].set_exception(refused())
    await tick(10)
    assert journal == ["attempt_ended watch 1", "settle 1"]
    race.answers[2].set_result(answer())

    assert (await running.done()).status == 200
    assert [attempt.is_loser for attempt in running.call.attempts] == [False, False]


async def test_a_primary_that_fails_before_the_hedge_is_due_is_an_ordinary_failure(journal: Any) -> None:
    kit = PipelineKit(hedging(3600.0), FALLBACK, providers=[ScriptedProvider(refused(), answer)], deployments=THREE)

    delivered = await kit.call(ASKED)

    assert delivered.headers["x-hookline-deployment"] == "up/2"
    assert [attempt.is_hedge for _, attempt in kit.providers["up"].sent] == [False, False]


async def test_a_skipped_hedge_is_not_sent_and_the_next_target_is_asked_instead(journal: Any) -> None:
    race = Race()

    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        if target.deployment.id == "up/2":
            raise Skip("hedge budget spent")

    kit = race_kit(race, journal, make_plugin("z", admit_attempt=admit_attempt))
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()
    race.answers[1].set_result(answer())
    await running.done()

    assert [attempt.deployment.id for _, attempt in kit.providers["up"].sent] == ["up/1", "up/3"]


async def test_when_all_racers_fail_the_upstream_error_is_told_and_not_what_one_cannot_say(journal: Any) -> None:
    race = Race()
    kit = race_kit(race, journal, deployments=TWO)
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()

    race.answers[1].set_exception(refused("one"))
    race.answers[2].set_exception(BadRequest("no such field"))
    delivered = await running.done()

    assert (delivered.status, delivered.json()["error"]["message"]) == (502, "one")


async def test_a_client_that_leaves_a_race_ends_both_and_neither_has_lost(journal: Any) -> None:
    race = Race()
    kit = race_kit(race, journal, deployments=TWO)
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()

    running.leave()
    await running.done()

    assert sorted(race.cancelled) == [1, 2]
    assert journal == [
        "attempt_ended watch 1", "settle 1", "attempt_ended watch 2", "settle 2", "call_ended watch client_gone",
    ]  # fmt: skip
    assert [attempt.is_loser for attempt in running.call.attempts] == [False, False]


async def test_a_client_that_leaves_the_second_race_of_a_call_ends_it(journal: Any) -> None:
    race = Race()
    kit = race_kit(race, journal, deployments={"m": ["up/1", "up/2", "up/3", "up/4"]})
    running = kit.start(kit.make_call(ASKED))
    await race.asked[2].wait()
    race.answers[1].set_exception(refused())
    race.answers[2].set_exception(refused())
    await race.asked[4].wait()

    running.leave()
    await running.done()

    assert sorted(race.cancelled) == [3, 4]
    assert journal[-1] == "call_ended watch client_gone"


async def test_a_call_whose_hedge_is_not_due_stays_in_its_own_task(journal: Any) -> None:
    tasks: list[Any] = []

    def sent(call: Any, attempt: Any) -> Any:
        tasks.append(asyncio.current_task())
        return answer()

    hedged = make_plugin(
        "hedged", select=lambda call, targets: [Target(t.deployment, hedge_after_s=60.0) for t in targets]
    )
    kit = PipelineKit(hedged, providers=[ScriptedProvider(sent)], deployments=TWO)
    running = kit.start(kit.make_call(ASKED))

    assert (await running.done()).status == 200
    assert tasks == [running.task]


async def test_a_hedge_whose_admission_takes_too_long_does_not_harm_the_first(journal: Any) -> None:
    race, late = Race(), asyncio.Event()

    async def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        if attempt.is_hedge:
            try:
                await asyncio.Event().wait()
            finally:
                late.set()

    slow = make_plugin("slow", admit_attempt=admit_attempt)
    kit = race_kit(race, journal, slow, deployments=TWO, hook_timeout_s=0.01)
    running = kit.start(kit.make_call(ASKED))
    await late.wait()
    race.answers[1].set_result(answer())

    delivered = await running.done()
    assert (delivered.status, delivered.headers["x-hookline-deployment"]) == (200, "up/1")


async def test_a_hedge_that_is_rejected_ends_the_call_at_once(journal: Any) -> None:
    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        if attempt.is_hedge:
            raise Rejected(Unavailable("no"))

    race = Race()
    kit = race_kit(race, journal, make_plugin("strict", admit_attempt=admit_attempt), deployments=TWO)

    delivered = await kit.run(kit.make_call(ASKED))

    assert (delivered.status, race.cancelled) == (503, [1])
