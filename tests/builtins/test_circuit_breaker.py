"""The circuit breaker: votes, the window, states by events, and the whole of it in a pipeline."""

from __future__ import annotations

import asyncio
import itertools
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hookline import Attempt, BadRequest, Deployment, Skip, Target, UpstreamError, hookimpl
from hookline.builtins.circuit_breaker import CIRCUITS_MAX, Plugin
from hookline.builtins.circuit_breaker.circuit import (
    TRANSITIONS,
    Circuit,
    Event,
    State,
    VoteWindow,
    choose_forced,
    open_time_s,
)
from hookline.builtins.circuit_breaker.options import BreakerOptions
from hookline.builtins.circuit_breaker.votes import vote_of
from hookline.builtins.fallback import Plugin as FallbackPlugin
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, stream

STATES, EVENTS = get_args(State), get_args(Event)


def failed(status: int | None = None, *, kind: str = "status", retry_after_s: float | None = None) -> UpstreamError:
    return UpstreamError("the reason", kind=kind, upstream_status=status, retry_after_s=retry_after_s)


def attempt_at(started_at: float, *, is_forced: bool = False) -> Attempt:
    return Attempt(Target(Deployment("up/m", "up", "m"), is_forced=is_forced), 1, started_at)


def in_state(state: State) -> Circuit:
    circuit = Circuit(30.0)
    if state.startswith("forced"):
        circuit.apply("force_open" if state == "forced_open" else "force_closed", 0.0)
    elif state != "closed":
        circuit.apply("tripped", 0.0, wait_s=5.0)
    if state == "half_open":
        circuit.apply("time_over", 5.0)
    assert circuit.state == state
    return circuit


@pytest.mark.parametrize(
    ("error", "vote"),
    [
        (None, "ok"),
        (failed(400), None),
        (failed(409), None),
        (failed(413), None),
        (failed(422), None),
        (failed(401), "refused"),
        (failed(402), "refused"),
        (failed(403), "refused"),
        (failed(404), "failed"),
        (failed(408), "failed"),
        (failed(429), "cooldown"),
        (failed(500), "failed"),
        (failed(529), "failed"),
        (failed(kind="connect"), "failed"),
        (failed(kind="tls"), "failed"),
        (failed(kind="reset"), "failed"),
        (failed(kind="garbage"), "failed"),
        (failed(kind="first_byte_timeout"), "failed"),
        (failed(kind="idle_timeout"), "failed"),
        (failed(kind="configuration"), "failed"),
        (failed(kind="deadline"), None),
        (failed(kind="pool_timeout"), None),
        (BadRequest("cannot be translated"), None),
    ],
)
def test_what_an_ended_attempt_says_about_its_deployment(make_call, make_attempt, error, vote):
    assert vote_of(make_call({"model": "m"}), make_attempt(error=error), None) == vote


@pytest.mark.parametrize("status", [403, 404])
def test_an_object_that_is_not_there_or_not_ours_says_nothing_of_the_deployment(make_call, make_attempt, status):
    call = make_call(method="GET", path="/v1/files/gone")

    assert vote_of(call, make_attempt(error=failed(status)), None) is None


@pytest.mark.parametrize(("took_s", "vote"), [(1.9, "ok"), (2.1, "slow")])
def test_a_call_that_takes_too_long_is_slow(make_call, make_attempt, took_s, vote):
    assert vote_of(make_call({"model": "m"}), make_attempt(latency_s=took_s), 2.0) == vote


def test_of_a_stream_only_the_first_byte_can_be_slow(make_call, make_attempt):
    attempt = make_attempt(latency_s=60.0)
    attempt.first_byte_at = attempt.started_at + 1.0

    assert vote_of(make_call({"model": "m", "stream": True}), attempt, 2.0) == "ok"


def test_losers_of_hedges_and_clients_that_left_cast_no_vote(make_call, make_attempt):
    loser, left = make_attempt(error=failed(500)), make_attempt()
    loser.is_loser, left.is_complete = True, False

    assert [vote_of(make_call({"model": "m"}), a, None) for a in (loser, left)] == [None, None]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_every_state_follows_the_table_for_every_event(state, event):
    circuit = in_state(state)

    has_changed = circuit.apply(event, 10.0, wait_s=5.0)

    assert circuit.state == TRANSITIONS.get((state, event), state)
    assert has_changed is (circuit.state != state)


def test_opens_after_failures_in_a_row_and_a_success_starts_the_row_again():
    options = BreakerOptions(consecutive_failures=3)
    circuit = Circuit(30.0)

    events = [
        circuit.event_of(vote, attempt_at(1.0), 1.0, options)
        for vote in ("failed", "failed", "ok", "failed", "failed", "failed")
    ]

    assert events == [None, None, None, None, None, "tripped"]


def test_opens_at_once_when_it_refuses_us():
    circuit = Circuit(30.0)

    assert circuit.event_of("refused", attempt_at(1.0), 1.0, BreakerOptions()) == "tripped"
    assert circuit.why == "refused"


def test_opens_by_slow_calls_that_are_no_failures():
    options = BreakerOptions(min_votes=10, slow_call_rate=0.5, consecutive_failures=3)
    circuit = Circuit(30.0)

    events = [circuit.event_of(vote, attempt_at(1.0), 1.0, options) for vote in ("ok", "slow") * 5]

    assert events == [None] * 9 + ["tripped"]
    assert circuit.why == "slow_calls"


def test_opens_by_the_failure_rate_once_there_are_enough_votes():
    options = BreakerOptions(consecutive_failures=100, failure_rate=0.5, min_votes=10)
    circuit = Circuit(30.0)

    events = [circuit.event_of(vote, attempt_at(1.0), 1.0, options) for vote in ("ok", "failed") * 5]

    assert events == [None] * 9 + ["tripped"]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=60))
def test_the_window_counts_what_is_younger_than_it_and_forgets_what_is_older(votes):
    window, now, at = VoteWindow(30.0), 0.0, []
    for is_ok, wait_s in votes:
        now += wait_s
        window.add("ok" if is_ok else "failed", now)
        at.append((is_ok, now))

    total, bad, _ = window.count(now)

    surely_in = [ok for ok, t in at if t > now - 27.0]  # the oldest slice is up to a tenth short
    surely_out = [ok for ok, t in at if t <= now - 30.0]
    assert len(surely_in) <= total <= len(at) - len(surely_out)
    assert surely_in.count(False) <= bad <= [ok for ok, _ in at].count(False) - surely_out.count(False)


def test_votes_of_attempts_from_before_the_last_change_are_stale():
    options = BreakerOptions(consecutive_failures=1)
    circuit = in_state("half_open")
    circuit.apply("probe_ok", 10.0)

    assert circuit.event_of("failed", attempt_at(9.0), 11.0, options) is None
    assert circuit.event_of("failed", attempt_at(10.5), 11.0, options) == "tripped"


def test_a_late_success_does_not_close_an_open_circuit():
    circuit = in_state("open")

    assert circuit.event_of("ok", attempt_at(-1.0), 1.0, BreakerOptions()) is None


def test_a_forced_success_closes():
    circuit = in_state("open")

    assert circuit.event_of("ok", attempt_at(1.0, is_forced=True), 1.0, BreakerOptions()) == "forced_ok"


def test_half_open_admits_one_probe_at_a_time():
    circuit = in_state("open")
    assert (circuit.is_admitting(4.9), circuit.is_admitting(5.0)) == (False, True)

    circuit.take_probe(attempt_at(5.0), 5.0)

    assert (circuit.state, circuit.is_admitting(100.0)) == ("half_open", False)


def test_a_longer_open_s_alone_lengthens_the_longest_time():
    assert BreakerOptions(open_s=300).max_open_s == 300
    assert BreakerOptions(open_s=30).max_open_s == 60


def test_the_open_time_doubles_up_to_its_maximum_and_starts_again_after_a_well_window(make_attempt):
    options = BreakerOptions(open_s=5, max_open_s=30, consecutive_failures=1)
    circuit, waits = Circuit(30.0), []

    def trip(at: float) -> None:
        event = circuit.event_of("failed", circuit.probe or attempt_at(at), at, options)
        waits.append(open_time_s(event, circuit.opens, make_attempt(error=failed(500)), options, 0.0))
        circuit.apply(event, at, wait_s=waits[-1])
        circuit.take_probe(attempt_at(at), at)

    for _ in range(4):
        trip(0.0)
    circuit.apply("probe_ok", 1.0)
    trip(2.0)
    circuit.apply("probe_ok", 100.0)
    trip(200.0)

    assert waits == [5, 10, 20, 30, 30, 5]


@given(st.integers(0, 10_000), st.floats(0, 0.999))
def test_the_time_open_is_never_longer_than_said_and_never_nothing(opens, draw):
    options = BreakerOptions(open_s=5, max_open_s=60, jitter=0.2)

    wait_s = open_time_s("probe_failed", opens, attempt_at(0.0), options, draw)

    most_s = min(5 * 2.0 ** min(opens, 64), 60)
    assert most_s * 0.8 <= wait_s <= most_s


@pytest.mark.parametrize(("retry_after_s", "wait_s"), [(None, 5), (17, 17), (0, 0), (7200, 3600)])
def test_a_429_cools_down_for_what_retry_after_says(make_attempt, retry_after_s, wait_s):
    attempt = make_attempt(error=failed(429, retry_after_s=retry_after_s))

    assert open_time_s("cooldown", 0, attempt, BreakerOptions(), 0.5) == wait_s


def test_panic_forces_the_circuit_that_opens_first_and_prefers_a_rate_limit_to_a_failure():
    def opened(event, wait_s):
        circuit = Circuit(30.0)
        circuit.apply(event, 0.0, wait_s=wait_s)
        return circuit

    late, early, limited = opened("tripped", 60), opened("tripped", 20), opened("cooldown", 90)

    assert choose_forced([late, early], 1.0) == 1
    assert choose_forced([late, early, limited], 1.0) == 2
    assert choose_forced([late, early], 30.0) is None


def test_made_up_deployments_do_not_grow_the_map_and_closed_ones_go_first(make_host, make_call, make_attempt):
    plugin = Plugin(BreakerOptions(consecutive_failures=1), make_host())
    call = make_call({"model": "m"})
    plugin.attempt_ended(call, make_attempt("up/broken", error=failed(500)))

    for number in range(CIRCUITS_MAX + 10):
        plugin.attempt_ended(call, make_attempt(f"up/{number}"))

    assert len(plugin._circuits) == CIRCUITS_MAX
    assert plugin._circuits["up/broken"].state == "open"


def server_error():
    return answer(b"{}", 500)


def too_many():
    return answer(b"{}", 429, **{"retry-after": "20"})


def make_kit(*bad_scripts, deployments=("bad/m", "good/m"), plugins=(Plugin, FallbackPlugin)) -> PipelineKit:
    """Model "m" at "bad", which plays the scripts, and then at "good"; two failures open a circuit for 10 s."""
    return PipelineKit(
        *plugins,
        providers=[ScriptedProvider(*bad_scripts, name="bad"), ScriptedProvider(answer, name="good")],
        deployments={"m": deployments},
        options={"circuit_breaker": {"consecutive_failures": 2, "open_s": 10.0, "jitter": 0.0}},
    )


async def ask(kit: PipelineKit) -> str:
    """Where the answer of one call came from, and after how many attempts."""
    delivered = await kit.call({"model": "m", "messages": []})
    return f"{delivered.headers.get('x-hookline-deployment')} {delivered.headers.get('x-hookline-attempts')}"


async def test_an_open_circuit_is_skipped_until_a_probe_closes_it():
    kit = make_kit(server_error, server_error, answer)

    before = [await ask(kit) for _ in range(2)]
    while_open = await ask(kit)
    kit.clock.advance(10)
    probe, after = await ask(kit), await ask(kit)

    assert before == ["good/m 2", "good/m 2"]
    assert while_open == "good/m 1"
    assert (probe, after) == ("bad/m 1", "bad/m 1")


async def test_a_failed_probe_opens_for_twice_as_long():
    kit = make_kit(server_error)
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)

    probe = await ask(kit)
    kit.clock.advance(19)
    still_open = await ask(kit)
    kit.clock.advance(1)
    next_probe = await ask(kit)

    assert (probe, still_open, next_probe) == ("good/m 2", "good/m 1", "good/m 2")


async def test_only_one_of_many_calls_is_the_probe_and_the_others_do_not_wait():
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(call, attempt):
        arrived.set()
        await release.wait()
        return answer()

    kit = make_kit(server_error, server_error, slow)
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)

    probe = asyncio.create_task(ask(kit))
    await arrived.wait()
    others = [await ask(kit) for _ in range(5)]
    release.set()

    assert others == ["good/m 1"] * 5
    assert await probe == "bad/m 1"


async def test_a_probe_whose_client_leaves_is_given_back():
    arrived = asyncio.Event()

    async def never(call, attempt):
        arrived.set()
        await asyncio.Event().wait()

    kit = make_kit(server_error, server_error, never, answer)
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)
    call = kit.make_call({"model": "m", "messages": []})
    leaving = asyncio.create_task(kit.run(call))
    await arrived.wait()

    call.client_closed()
    await leaving

    assert await ask(kit) == "bad/m 1"


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


async def begin_stream(kit: PipelineKit) -> asyncio.Task[None]:
    """A stream whose first event has left."""
    running = kit.start(kit.make_call({"model": "m", "messages": [], "stream": True}))
    await running.delivered.has_begun.wait()
    return running.task


async def test_a_stream_that_goes_on_keeps_its_deployment_from_others_no_longer_than_it_was_open():
    gate = asyncio.Event()
    kit = make_kit(server_error, server_error, lambda: stream(EVENT, gate, EVENT, b"data: [DONE]\n\n"), answer)
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)
    probe = await begin_stream(kit)

    kit.clock.advance(9.9)
    soon = await ask(kit)
    kit.clock.advance(0.1)
    explained = kit.make_call({"model": "m", "messages": []}, is_dry_run=True)
    await kit.run(explained)
    state_of_dry_run = kit.plugin(Plugin)._circuits["bad/m"].state
    later = await ask(kit)

    gate.set()
    await probe
    assert (soon, state_of_dry_run, later) == ("good/m 1", "half_open", "bad/m 1")
    assert kit.plugin(Plugin)._circuits["bad/m"].state == "closed"


async def test_a_probe_that_went_well_for_long_and_then_dies_is_no_vote():
    gate = asyncio.Event()
    kit = make_kit(
        server_error, server_error, lambda: stream(EVENT, gate, UpstreamError("reset", kind="reset")), answer
    )
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)
    probe = await begin_stream(kit)
    kit.clock.advance(10)
    await ask(kit)

    gate.set()
    await probe

    circuit = kit.plugin(Plugin)._circuits["bad/m"]
    assert (circuit.state, circuit.failures_in_row) == ("closed", 0)


@pytest.mark.parametrize(
    ("first_byte_s", "slow_call_s", "is_well"),
    [(None, None, False), (1.0, None, True), (1.0, 2.0, True), (3.0, 2.0, False)],
)
def test_only_an_answer_that_began_in_time_is_no_longer_waited_for(first_byte_s, slow_call_s, is_well):
    circuit, probe = in_state("half_open"), attempt_at(5.0)
    circuit.take_probe(probe, 5.0)
    probe.first_byte_at = None if first_byte_s is None else 5.0 + first_byte_s

    assert circuit.is_probe_well(20.0, BreakerOptions(open_s=5.0, slow_call_s=slow_call_s)) is is_well
    assert not circuit.is_probe_well(5.0 + 5.9, BreakerOptions(open_s=5.0, slow_call_s=slow_call_s))


async def test_a_probe_that_a_later_plugin_skips_is_given_back():
    class Fussy:
        skips = 1

        @hookimpl
        def admit_attempt(self, call, target, attempt):
            if target.deployment.provider == "bad" and len(kit.providers["bad"].sent) == 2 and self.skips:
                self.skips -= 1
                raise Skip("not now")

    kit = make_kit(server_error, server_error, answer, plugins=(Plugin, Fussy, FallbackPlugin))
    for _ in range(2):
        await ask(kit)
    kit.clock.advance(10)

    assert [await ask(kit) for _ in range(2)] == ["good/m 1", "bad/m 1"]


async def test_a_429_cools_down_for_its_retry_after():
    kit = make_kit(too_many, answer)

    first = await ask(kit)
    kit.clock.advance(19.9)
    cooling = await ask(kit)
    kit.clock.advance(0.2)
    after = await ask(kit)

    assert (first, cooling, after) == ("good/m 2", "good/m 1", "bad/m 1")


async def test_when_every_circuit_is_open_the_least_bad_target_is_asked_all_the_same():
    kit = make_kit(server_error, server_error, answer, deployments=("bad/m",))
    for _ in range(2):
        await ask(kit)

    forced, after = await ask(kit), await ask(kit)

    assert (forced, after) == ("bad/m 1", "bad/m 1")
    assert kit.providers["bad"].sent[2][1].target.is_forced
    assert not kit.providers["bad"].sent[3][1].target.is_forced


async def test_a_stream_that_dies_is_a_failure():
    def dying():
        return stream(
            b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', UpstreamError("reset", kind="reset")
        )

    kit = make_kit(dying)
    for _ in range(2):
        await kit.call({"model": "m", "messages": [], "stream": True})

    assert kit.plugin(Plugin)._circuits["bad/m"].state == "open"


async def test_a_dry_run_is_told_of_the_open_circuit_and_takes_no_probe():
    kit = make_kit(server_error)
    for _ in range(2):
        await ask(kit)
    plugin, attempt = kit.plugin(Plugin), kit.providers["bad"].sent[-1][1]
    call = kit.make_call({"model": "m", "messages": []})
    call.is_dry_run = True

    with pytest.raises(Skip, match=r"open for another 10\.0 s"):
        plugin.admit_attempt(call, attempt.target, attempt)
    kit.clock.advance(10)
    ticket = plugin.admit_attempt(call, attempt.target, attempt)

    assert (ticket, plugin._circuits["bad/m"].state) == (None, "open")


class BreakerMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: the state is what the table says, one probe at most, nothing admitted while open."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.options = 100.0, BreakerOptions(consecutive_failures=2, min_votes=4, open_s=5.0, max_open_s=20.0)
        self.circuit = Circuit(self.options.window_s)
        self.live: list[Attempt] = []

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_forced=st.booleans())
    def call(self, is_forced: bool) -> None:
        circuit, attempt = self.circuit, attempt_at(self.now, is_forced=is_forced)
        before, probe = circuit.state, circuit.probe
        if is_forced and before != "forced_open":
            self.live.append(attempt)
        elif circuit.is_admitting(self.now):
            if before in ("open", "half_open"):
                assert probe is None
                circuit.take_probe(attempt, self.now)
                assert circuit.state == "half_open"
            self.live.append(attempt)
        else:
            assert before in ("open", "half_open", "forced_open")

    @precondition(lambda self: self.live)
    @rule(data=st.data(), vote=st.sampled_from(["ok", "slow", "failed", "refused", "cooldown", None]))
    def end(self, data: st.DataObject, vote: str | None) -> None:
        circuit = self.circuit
        attempt = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        before = circuit.state
        event = None if vote is None else circuit.event_of(vote, attempt, self.now, self.options)
        if event is not None:
            wait_s = open_time_s(event, circuit.opens, attempt, self.options, 0.0)
            circuit.apply(event, self.now, wait_s=wait_s)
            assert circuit.state == TRANSITIONS.get((before, event), before)
        if circuit.probe is attempt:
            circuit.probe = None

    @rule(event=st.sampled_from(["force_open", "force_closed", "release"]))
    def decide(self, event: str) -> None:
        before = self.circuit.state
        self.circuit.apply(event, self.now)
        assert self.circuit.state == TRANSITIONS.get((before, event), before)

    @invariant()
    def what_is_open_has_an_end_and_a_reason(self) -> None:
        circuit = self.circuit
        assert (circuit.probe is None) or circuit.state == "half_open"
        if circuit.state == "open":
            assert circuit.why
            assert circuit.open_until <= self.now + max(self.options.max_open_s, self.options.cooldown_s)
        if circuit.state == "closed":
            assert circuit.failures_in_row < self.options.consecutive_failures


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
