"""The state table at the top of pipeline.py, edge by edge: in each state a call may be refused, break, lose its client, be late, be shut down.

Whatever happens: what was taken until then is given back in order, and `call_ended` is told once, with the outcome of the table."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hookline import (
    BadRequest,
    Call,
    InsufficientQuota,
    Principal,
    RateLimited,
    Rejected,
    Reply,
    Skip,
    Target,
    UpstreamError,
)
from hookline import pipeline as pipeline_module
from hookline.testing.kit import CHAT, Delivered, PipelineKit, ScriptedProvider, answer, make_plugin, stream

STREAMED = {**CHAT, "stream": True}
STATES = [
    "authenticating", "loading", "preparing", "routing", "admitting", "looking up", "selecting", "attempting", "replying", "delivering", "ended",
]  # fmt: skip
HOOKS = {
    "authenticating": "authenticate", "preparing": "prepare", "admitting": "admit", "looking up": "lookup", "selecting": "select",
    "replying": "edit_reply",
}  # fmt: skip
"""States in which a hook of one plugin decides. A body is loaded by its surface, an attempt is sent by a provider; delivering has tests of its own."""
ACTED = [state for state in STATES if state not in ("routing", "delivering", "ended")]

Act = Callable[[], Awaitable[None]]


def test_the_table_names_these_states() -> None:
    rows = re.findall(r"^(\w[\w ]*?) +\| goes on to|^(\w[\w ]*?) +\|", pipeline_module.__doc__ or "", re.MULTILINE)

    assert [second for first, second in rows if second] == STATES


def acting_plugin(hook: str, act: Act) -> type:
    async def one(call: Call) -> None:
        await act()

    async def select(call: Call, targets: list[Target]) -> list[Target]:
        await act()
        return targets

    async def edit_reply(call: Call, reply: Reply) -> Reply:
        await act()
        return reply

    return make_plugin("acting", **{hook: {"select": select, "edit_reply": edit_reply}.get(hook, one)})


def kit_in(state: str, act: Act, journal: Any) -> tuple[PipelineKit, Call]:
    """A call that does `act` when it is in `state`."""

    async def send(call: Call, attempt: Any) -> Reply:
        await act()
        return answer()

    async def load(call: Call) -> None:
        await act()
        call.set_json(b'{"model":"up/m"}', {"model": "up/m"})

    plugins = [acting_plugin(HOOKS[state], act)] if state in HOOKS else []
    provider = ScriptedProvider(send) if state == "attempting" else ScriptedProvider()
    kit = PipelineKit(taking(journal), *plugins, providers=[provider])
    return kit, kit.make_call(load=load if state == "loading" else None)


def taking(journal: Any) -> type:
    return journal.observer(
        "watch",
        admit=lambda call: journal.ticket("call"),
        admit_attempt=lambda call, target, attempt: journal.ticket("attempt"),
    )


def end_in(state: str, outcome: str) -> list[str]:
    """The transcript of an end: what was taken before `state`, backwards, then `call_ended`."""
    place = STATES.index(state)
    attempt = ["attempt_ended watch 1", "settle attempt"] if place >= STATES.index("attempting") else []
    call = ["settle call"] if place >= STATES.index("admitting") else []
    return [*attempt, *call, f"call_ended watch {outcome}"]


async def nothing() -> None:
    pass


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("state", ACTED)
async def test_on_the_way_to_ok(state: str, journal: Any) -> None:
    kit, call = kit_in(state, nothing, journal)

    delivered = await kit.run(call)

    assert (delivered.status, delivered.times) == (200, 1)
    assert journal == end_in("delivering", "ok")


@pytest.mark.parametrize("state", ACTED)
async def test_rejected(state: str, journal: Any) -> None:
    """A provider can't reject: what it can't translate makes its deployment a skipped target."""

    async def reject() -> None:
        error = RateLimited("not now")
        raise error if state in ("loading", "attempting") else Rejected(error)

    kit, call = kit_in(state, reject, journal)

    delivered = await kit.run(call)

    assert (delivered.status, delivered.times) == (429, 1)
    assert journal == end_in(state, "rejected")


@pytest.mark.parametrize("state", ACTED)
async def test_broken(state: str, journal: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Closed hooks and our own parts are a 500; `lookup` is open and goes on; a provider that breaks is an upstream that failed."""

    async def fail() -> None:
        raise ValueError("a bug")

    kit, call = kit_in(state, fail, journal)

    delivered = await kit.run(call)

    status, outcome, last = {
        "looking up": (200, "ok", "delivering"),
        "attempting": (502, "upstream_error", "attempting"),
    }.get(state, (500, "internal_error", state))
    assert (delivered.status, delivered.times) == (status, 1)
    assert journal == end_in(last, outcome)
    assert b"a bug" not in delivered.body


@pytest.mark.parametrize("state", ACTED)
@pytest.mark.parametrize("event", ["client_gone", "timeout", "shutdown"])
async def test_interrupted(state: str, event: str, journal: Any) -> None:
    """The client hears of a timeout; nobody hears the rest."""
    is_there = asyncio.Event()

    async def wait() -> None:
        is_there.set()
        await for_ever()

    kit, call = kit_in(state, wait, journal)
    running = kit.start(call)
    await is_there.wait()

    if event == "client_gone":
        running.leave()
    elif event == "timeout":
        kit.expire(call)
    else:
        running.task.cancel()
    await asyncio.wait({running.task})

    assert running.task.cancelled() is (event == "shutdown")
    assert (running.delivered.status, running.delivered.times) == ((504, 1) if event == "timeout" else (0, 0))
    assert journal == end_in(state, event)


# -- routing: no plugin, and no await


@pytest.mark.parametrize(
    ("model", "principal", "status", "code"),
    [
        ("up/m", Principal(key_id="k", models=("other",)), 403, "model_not_allowed"),
        ("nowhere/m", None, 404, "model_not_found"),
        (None, None, 400, None),
    ],
)
async def test_routing_refuses(
    model: str | None, principal: Principal | None, status: int, code: str | None, journal: Any
) -> None:
    kit = PipelineKit(taking(journal), deployments={"known": ["up/m"]})
    kit.pipeline.catalog.default_provider = None
    payload = {**CHAT, "model": model} if model else {"messages": []}

    delivered = await kit.run(kit.make_call(payload, principal=principal))

    assert delivered.status == status
    assert code is None or delivered.json()["error"]["code"] == code
    assert journal == ["call_ended watch rejected"]


# -- looking up: an answer without an upstream


async def test_a_found_reply_is_delivered_without_an_attempt(journal: Any) -> None:
    kit = PipelineKit(
        taking(journal), make_plugin("cache", lookup=lambda call: Reply(200, {}, b"kept", source="cache"))
    )

    delivered = await kit.call()

    assert delivered.body == b"kept"
    assert journal == ["settle call", "call_ended watch ok"]
    assert journal.results["call_ended watch"][0].source == "cache"


# -- attempting: what is left when nobody answered


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (None, 503, "upstream_error"),
        (InsufficientQuota("spent"), 429, "rejected"),
        (RateLimited("full"), 429, "rejected"),
        (BadRequest("can't say that"), 400, "rejected"),
    ],
)
async def test_every_target_was_skipped(error: Any, status: int, outcome: str, journal: Any) -> None:
    def skip(call: Call, target: Target, attempt: Any) -> None:
        raise Skip("not this one", error)

    kit = PipelineKit(taking(journal), make_plugin("guard", admit_attempt=skip))

    delivered = await kit.call()

    assert delivered.status == status
    assert journal == ["settle attempt", "settle call", f"call_ended watch {outcome}"], (
        "an attempt that was not admitted casts no vote"
    )


@pytest.mark.parametrize("is_rescued", [False, True])
async def test_the_upstream_failed(is_rescued: bool, journal: Any) -> None:
    rescue = make_plugin(
        "stale", rescue=lambda call, error: Reply(200, {}, b"stale", source="rescue") if is_rescued else None
    )
    kit = PipelineKit(taking(journal), rescue, providers=[ScriptedProvider(UpstreamError("died", kind="reset"))])

    delivered = await kit.call()

    assert delivered.status == (200 if is_rescued else 502)
    assert journal == end_in("attempting", "ok" if is_rescued else "upstream_error")


# -- delivering


def streaming(journal: Any, *events: Any, plugins: tuple[type, ...] = ()) -> tuple[PipelineKit, Call]:
    kit = PipelineKit(taking(journal), *plugins, providers=[ScriptedProvider(lambda: stream(*events))])
    return kit, kit.make_call(STREAMED)


async def test_a_stream_that_ends_is_ok(journal: Any, wire: Any) -> None:
    kit, call = streaming(journal, wire.chunk("a"), wire.chunk(finish="stop"))

    delivered = await kit.run(call)

    assert (delivered.body, delivered.error) == (wire.chunk("a") + wire.chunk(finish="stop"), None)
    assert journal == end_in("delivering", "ok")


@pytest.mark.parametrize("end", [None, ConnectionResetError()])
async def test_a_stream_that_dies_is_lost(end: Any, journal: Any, wire: Any) -> None:
    kit, call = streaming(journal, wire.chunk("a"), *([end] if end else []))

    delivered = await kit.run(call)

    assert delivered.body.startswith(wire.chunk("a") + b'data: {"error":')
    assert delivered.error is not None
    assert journal == end_in("delivering", "upstream_lost")


@pytest.mark.parametrize("event", ["client_gone", "timeout", "shutdown"])
async def test_a_stream_that_is_interrupted(event: str, journal: Any, wire: Any) -> None:
    kit, call = streaming(journal, wire.chunk("a"), asyncio.Event())
    running = kit.start(call)
    await running.delivered.has_begun.wait()

    if event == "client_gone":
        running.leave()
    elif event == "timeout":
        kit.expire(call)
    else:
        running.task.cancel()
    await asyncio.wait({running.task})

    assert (b"deadline_exceeded" in running.delivered.body) is (event == "timeout")
    assert journal == end_in("delivering", event)
    assert journal.results["attempt"][0].usage.is_estimated, "what was seen is paid for"


@pytest.mark.parametrize(
    ("error", "outcome"), [(Rejected(BadRequest("bad word")), "rejected"), (ValueError("a bug"), "internal_error")]
)
async def test_an_edit_that_ends_the_stream(error: Exception, outcome: str, journal: Any, wire: Any) -> None:
    def edit_event(call: Call, event: Any) -> Any:
        if b"secret" in event.data:
            raise error
        return event

    kit, call = streaming(
        journal,
        wire.chunk("a"),
        wire.chunk("secret"),
        wire.chunk(finish="stop"),
        plugins=(make_plugin("filter", edit_event=edit_event),),
    )

    delivered = await kit.run(call)

    assert delivered.body.startswith(wire.chunk("a") + b'data: {"error":')
    assert b"secret" not in delivered.body
    assert journal == end_in("delivering", outcome)


async def test_a_client_that_is_found_gone_at_the_first_write(journal: Any) -> None:
    kit, call = kit_in("authenticating", nothing, journal)

    await kit.run(call, Delivered(gone_after=0))

    assert journal == end_in("delivering", "client_gone")


async def test_a_surface_that_breaks_while_it_writes(journal: Any, caplog: pytest.LogCaptureFixture) -> None:
    kit, call = kit_in("authenticating", nothing, journal)

    async def deliver(reply: Reply) -> None:
        raise OSError("disk full")

    await kit.pipeline.run(call, deliver)

    assert journal == end_in("delivering", "internal_error")
