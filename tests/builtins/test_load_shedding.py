"""Load shedding: who is let in, who is told what, and what moves the limit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hookline import Principal, Rejected
from hookline.builtins import load_shedding
from hookline.builtins.load_shedding import Plugin, SheddingOptions
from hookline.builtins.load_shedding.limiter import Limiter
from hookline.errors import Unavailable, UpstreamError
from hookline.stores.memory import MemoryLimits
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider

MODEL = {"model": "m", "messages": []}
KIND = ("m", "chat", False)


def plugin_of(make_host: Any, **options: Any) -> Plugin:
    return Plugin(SheddingOptions(**options), make_host(models=["m"]))


def fill(plugin: Plugin, make_call: Any, **about: Any) -> list[Any]:
    """Places until one is refused."""
    places: list[Any] = []
    try:
        while len(places) < 100:
            places.append(plugin.admit(make_call(MODEL, **about)))
    except Rejected:
        pass
    return places


def test_each_class_fills_its_share_and_the_important_the_rest(make_host: Any, make_call: Any) -> None:
    classes = {"low": "low", "high": "high"}
    plugin = plugin_of(make_host, initial_limit=10, keys=classes)

    counts = [
        len(fill(plugin, make_call, principal=Principal(name, name))) for name in ("low", "someone", "high", "high")
    ]

    assert counts == [6, 2, 2, 0]


def test_a_reload_keeps_what_was_found_and_counts_on(make_host: Any, make_call: Any) -> None:
    """Symptom: a reload under overload let in as many again, and took their latency for that of an idle model."""
    host = make_host(models=["m"])
    host.limits = MemoryLimits(host.clock)
    high = Principal("high", "high")
    former = Plugin(SheddingOptions(initial_limit=10, keys={"high": "high"}), host)
    places = [former.admit(make_call(MODEL, principal=high)) for _ in range(9)]

    later = Plugin(SheddingOptions(initial_limit=40, max_limit=20, keys={"high": "high"}), host)
    more = fill(later, make_call, principal=high)
    narrow = Plugin(SheddingOptions(min_limit=2, max_limit=5, initial_limit=5, keys={"high": "high"}), host)

    assert (len(places), len(more)) == (9, 1)
    assert fill(narrow, make_call, principal=high) == []
    assert narrow.limiters["m"].limit == 5


def test_the_limit_of_a_model_goes_with_it_but_not_for_a_reload_that_is_refused(make_host: Any, make_call: Any) -> None:
    host, without = make_host(models=["m"]), make_host(models=[])
    host.limits = without.limits = MemoryLimits(host.clock)
    former = Plugin(SheddingOptions(initial_limit=10), host)
    fill(former, make_call)

    later = Plugin(SheddingOptions(), without)
    refused = set(later.limiters)
    later.start()

    assert (refused, set(later.limiters)) == ({"m"}, set())


@pytest.mark.parametrize(
    ("principal", "asked", "expected"),
    [
        (Principal("k", "k"), None, "normal"),
        (Principal("k", "k"), "high", "normal"),
        (Principal("k", "k"), "LOW", "low"),
        (Principal("id-1", "gold"), None, "high"),
        (Principal("id-1", "gold"), "normal", "normal"),
        (Principal("k", "k", tenant="batch"), "high", "low"),
        (Principal("k", "k", tags=("slow", "vip")), None, "high"),
        (Principal("gold", "gold", tenant="batch"), None, "high"),
    ],
)
def test_a_header_asks_for_less_and_never_for_more_than_the_key_is_worth(
    principal: Principal, asked: str | None, expected: str, make_host: Any, make_call: Any
) -> None:
    plugin = plugin_of(make_host, keys={"gold": "high"}, tenants={"batch": "low"}, tags={"vip": "high", "slow": "low"})
    headers = {} if asked is None else {"x-hookline-priority": asked}

    assert plugin._priority_of(make_call(MODEL, headers=headers, principal=principal)) == expected


def test_a_word_that_is_no_priority_is_a_400_and_takes_no_place(make_host: Any, make_call: Any) -> None:
    plugin = plugin_of(make_host, initial_limit=4)
    with pytest.raises(Rejected, match="there are low, normal, high") as caught:
        plugin.admit(make_call(MODEL, headers={"x-hookline-priority": "urgent"}))

    assert caught.value.error.reply_status == 400
    assert len(fill(plugin, make_call)) == 3


@pytest.mark.parametrize(("key", "should_retry"), [("high", "true"), ("normal", "true"), ("low", "false")])
def test_the_refused_are_told_when_to_come_back_and_the_least_important_not_to(
    key: str, should_retry: str, make_host: Any, make_call: Any
) -> None:
    host = make_host(models=["m"])
    keys = {name: name for name in ("high", "normal", "low")}
    plugin = Plugin(SheddingOptions(initial_limit=4, keys=keys, retry_after_s=3), host)
    fill(plugin, make_call, principal=Principal("high", "high"))

    with pytest.raises(Rejected) as caught:
        plugin.admit(make_call(MODEL, principal=Principal(key, key)))

    error = caught.value.error
    assert (error.reply_status, error.error_code) == (503, "overloaded")
    assert error.reply_headers() == {"retry-after": "3", "x-should-retry": should_retry}
    assert host.metrics.values["hookline_shed_total", "m", key] >= 1


@pytest.mark.parametrize(("kind", "falls"), [("pool_timeout", True), ("first_byte_timeout", True), ("reset", False)])
async def test_waiting_for_a_connection_of_our_own_means_too_many_calls_too(kind: str, falls: bool) -> None:
    kit = PipelineKit(
        load_shedding.Plugin,
        providers=[ScriptedProvider(UpstreamError("no", kind=kind))],
        options={"load_shedding": {"initial_limit": 40}},
    )
    for _ in range(50):
        await kit.call(CHAT)

    assert (kit.metric("hookline_shedding_limit", model="other") < 40) is falls


async def test_places_come_back_on_every_exit_and_metrics_say_so() -> None:
    def kit_of(*scripts: Any) -> PipelineKit:
        return PipelineKit(
            load_shedding.Plugin,
            providers=[ScriptedProvider(*scripts)],
            options={"load_shedding": {"initial_limit": 1, "min_limit": 1}},
        )

    for script in (UpstreamError("no", kind="connect"), RuntimeError("broke"), Unavailable("no")):
        kit = kit_of(script)
        for _ in range(3):
            assert (await kit.call(CHAT)).json()["error"]["code"] != "overloaded"
        assert kit.metric("hookline_shedding_in_flight", model="other") == 0
        assert kit.metric("hookline_shedding_limit", model="other") == 1


async def test_a_dry_run_says_how_busy_it_is_and_takes_nothing() -> None:
    kit = PipelineKit(load_shedding.Plugin, options={"load_shedding": {"initial_limit": 1, "min_limit": 1}})
    for _ in range(3):
        call = kit.make_call(CHAT, is_dry_run=True)
        call.is_explained = True
        assert (await kit.run(call)).status == 200
        assert "0 calls in flight" in next(n.text for n in call.notes or () if n.plugin == "load_shedding")


def run_window(limiter: Limiter, latency_s: float, *, in_flight: int, now: float) -> None:
    """One window of calls that began with so many others."""
    is_judged = False
    while not is_judged:
        limiter.in_flight = in_flight
        limiter.answered(KIND, limiter.enter(1.0, now), latency_s=latency_s, took_s=latency_s, now=now + latency_s)
        is_judged = not limiter._seen


def learnt(limit: int = 40) -> Limiter:
    limiter = Limiter(limit)
    limiter.tune(min_limit=1, max_limit=1_000, tolerance=1.5)
    limiter.answered(KIND, limiter.enter(1.0, 0.0), latency_s=1.0, took_s=1.0, now=1.0)
    run_window(limiter, 1.0, in_flight=0, now=0.0)
    return limiter


def test_the_limit_grows_only_by_calls_that_began_when_it_was_nearly_reached() -> None:
    limiter = learnt()
    run_window(limiter, 1.0, in_flight=20, now=10.0)
    assert limiter.limit == 40

    run_window(limiter, 1.0, in_flight=39, now=20.0)
    assert limiter.limit == 60


def test_it_grows_for_those_that_were_refused_although_the_others_found_room() -> None:
    """Symptom: places had come back, but the important alone did not fill the limit, so it stayed low and the others were refused for ever."""
    limiter = learnt()
    for _ in range(30):
        limiter.refused()
    run_window(limiter, 1.0, in_flight=20, now=10.0)

    assert limiter.limit == pytest.approx(40 * 1.05)


def test_a_stream_that_waited_a_small_part_of_its_time_costs_a_small_part_of_the_limit() -> None:
    limiter = learnt()
    for _ in range(40):
        limiter.in_flight = 39
        limiter.answered(KIND, limiter.enter(1.0, 10.0), latency_s=3.0, took_s=18.0, now=30.0)

    assert limiter.limit == pytest.approx(40 * 0.9)


def test_it_falls_by_latency_and_only_by_calls_that_began_after_the_last_fall() -> None:
    limiter = learnt()
    stale = limiter.enter(1.0, 5.0)
    run_window(limiter, 2.0, in_flight=39, now=10.0)
    assert limiter.limit == pytest.approx(40 * 0.8 * 0.75)

    for _ in range(1_000):
        limiter.answered(KIND, stale, latency_s=9.0, took_s=9.0, now=20.0)
    assert limiter.limit == pytest.approx(24)


def test_an_upstream_that_says_it_is_overloaded_lowers_it() -> None:
    limiter = learnt()
    for _ in range(40):
        limiter.overloaded(limiter.enter(1.0, 10.0), now=10.0)

    assert limiter.limit == pytest.approx(32)


def test_calls_that_stay_slower_although_the_limit_has_halved_are_the_new_normal() -> None:
    """Answers have become three times longer: nobody is overloaded."""
    limiter = learnt()
    for minute in range(1, 6):
        run_window(limiter, 3.0, in_flight=11, now=60.0 * minute)

    assert limiter.limit == 40
    run_window(limiter, 3.0, in_flight=39, now=600.0)
    assert limiter.limit > 40


def test_the_same_latency_is_no_overload_for_another_kind_of_call() -> None:
    limiter = learnt()
    for kind, latency_s in ((("m", "embeddings", False), 0.05), (("m", "chat", True), 9.0)):
        for _ in range(50):
            limiter.in_flight = 0
            limiter.answered(kind, limiter.enter(1.0, 1.0), latency_s=latency_s, took_s=latency_s, now=2.0)

    assert limiter.limit == 40


@pytest.mark.parametrize(
    "options", [{"min_limit": 9, "max_limit": 3}, {"shares": {"low": 0.5}}, {"keys": {"a": "urgent"}}, {"tolerance": 1}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SheddingOptions(**options)


def test_a_clock_too_coarse_to_see_a_call_breaks_nothing() -> None:
    limiter = learnt()
    for _ in range(100):
        limiter.answered(("m", "chat", True), limiter.enter(1.0, 5.0), latency_s=0.0, took_s=0.0, now=5.0)

    assert limiter.limit >= 40
