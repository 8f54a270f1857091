"""Every hook's contract: how answers combine, what an exception, a late answer, `Rejected` and `Skip` mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hookline import (
    BadRequest,
    Event,
    GiveUp,
    Principal,
    RateLimited,
    Rejected,
    Reply,
    Result,
    Skip,
    Unauthenticated,
    UpstreamError,
)
from hookline.chain import DECIDING_HOOKS, PHASES
from hookline.guards import ANSWERS, MAY_REJECT
from hookline.plugin_checks import ARGUMENTS
from hookline.testing.kit import CHAT, Delivered, PipelineKit, ScriptedProvider, answer, make_plugin, stream

REFUSED = UpstreamError("up/m refused the connection", kind="connect")
CLOSED = {hook for hook, rules in PHASES.items() if rules.on_error == "closed"}
NEEDS_FAILURE = {"after_failure", "rescue"}
ASYNC_HOOKS = [hook for hook in PHASES if hook != "edit_event"]
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)


def make_hook(hook: str, body: Callable[..., Any], *, is_async: bool = False) -> Any:
    """A function with exactly the hook's arguments that calls `body` with them."""
    arguments = ", ".join(ARGUMENTS[hook])
    head, wait = ("async def", "await ") if is_async else ("def", "")
    space: dict[str, Any] = {"body": body}
    exec(f"{head} {hook}({arguments}): return {wait}body({arguments})", space)
    return space[hook]


def kit_reaching(hook: str, *plugins: type, **settings: Any) -> PipelineKit:
    """A kit whose call reaches `hook`."""
    script: Any = answer
    if hook in NEEDS_FAILURE:
        script = REFUSED
    elif hook == "edit_event":
        script = lambda: stream(*EVENTS)  # noqa: E731
    return PipelineKit(*plugins, providers=[ScriptedProvider(script)], **settings)


STREAMED = {**CHAT, "stream": True}


class Ends(list[Result]):
    """Collects the Result of every call."""

    def plugin(self) -> type:
        return make_plugin("ends", call_ended=lambda call, result: self.append(result))


@pytest.fixture
def ends() -> Ends:
    return Ends()


def assert_failed_closed(hook: str, delivered: Delivered, result: Result) -> None:
    message = f'plugin "broken" failed in {hook}; see the log of the gateway'
    if hook == "edit_event":
        assert delivered.body.endswith(b"\n\n")
        assert message.replace('"', '\\"').encode() in delivered.body
        assert b"[DONE]" not in delivered.body
        assert delivered.error is not None
    else:
        assert delivered.status == 500
        assert delivered.json()["error"] == {
            "message": message, "type": "server_error", "param": None, "code": "internal_error",
        }  # fmt: skip
    assert result.outcome == "internal_error"


# -- errors


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("hook", PHASES)
async def test_a_hook_that_raises_does_what_its_row_says_and_is_named_and_counted(
    hook: str, is_async: bool, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    if is_async and hook == "edit_event":
        return  # refused at start-up: test_chain.py

    def fail(*args: Any) -> Any:
        raise ValueError("out of cheese")

    broken = make_plugin("broken", **{hook: make_hook(hook, as_async(fail) if is_async else fail, is_async=is_async)})
    kit = kit_reaching(hook, broken, ends.plugin())
    plain = await kit_reaching(hook).call(STREAMED if hook == "edit_event" else CHAT)

    delivered = await kit.call(STREAMED if hook == "edit_event" else CHAT)

    if hook in CLOSED:
        assert_failed_closed(hook, delivered, ends[0])
    else:
        assert (delivered.status, delivered.body) == (plain.status, plain.body)
        assert ends[0].outcome == ("upstream_error" if hook in NEEDS_FAILURE else "ok")
    fate = "the call fails (closed)" if hook in CLOSED else "the call goes on (open)"
    assert [r.getMessage() for r in caplog.records if r.name == "hookline.chain"] == [
        f'plugin "broken", hook {hook}: ValueError: out of cheese; {fate}; 1 so far'
    ]
    assert kit.metric("hookline_hook_errors_total", plugin="broken", hook=hook) == 1


@pytest.mark.parametrize("hook", ASYNC_HOOKS)
async def test_a_hook_that_hangs_is_late_and_treated_like_one_that_raised(
    hook: str, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[str] = []

    async def hang(*args: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(hook)

    broken = make_plugin("broken", **{hook: make_hook(hook, hang, is_async=True)})
    kit = kit_reaching(hook, broken, ends.plugin(), hook_timeout_s=0.01)

    delivered = await kit.call()

    if hook in CLOSED:
        assert_failed_closed(hook, delivered, ends[0])
    else:
        assert delivered.status == (502 if hook in NEEDS_FAILURE else 200)
    assert cancelled == [hook]
    (told,) = [r.getMessage() for r in caplog.records if r.name == "hookline.chain"]
    assert told.startswith(f'plugin "broken", hook {hook}: LateError: no answer within 0.01 s; ')
    assert kit.metric("hookline_hook_errors_total", plugin="broken", hook=hook) == 1


@pytest.mark.parametrize("hook", sorted(DECIDING_HOOKS))
async def test_a_plugin_may_close_a_deciding_hook(hook: str, ends: Ends) -> None:
    def fail(*args: Any) -> Any:
        raise ValueError("out of cheese")

    broken = make_plugin("broken", on_error="closed", **{hook: make_hook(hook, fail)})

    delivered = await kit_reaching(hook, broken, ends.plugin()).call()

    assert_failed_closed(hook, delivered, ends[0])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("hook", sorted(ANSWERS))
async def test_an_answer_of_the_wrong_kind_is_a_failure_that_names_plugin_and_kind(
    hook: str, is_async: bool, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(*args: Any) -> Any:
        return "x"

    broken = make_plugin(
        "broken", **{hook: make_hook(hook, as_async(answer) if is_async else answer, is_async=is_async)}
    )
    kit = kit_reaching(hook, broken, ends.plugin())

    delivered = await kit.call()

    if hook in CLOSED:
        assert_failed_closed(hook, delivered, ends[0])
    else:
        assert delivered.status == (502 if hook in NEEDS_FAILURE else 200)
    (told,) = [r.getMessage() for r in caplog.records if r.name == "hookline.chain"]
    assert told.startswith(f'plugin "broken", hook {hook}: TypeError: {hook} returned str; return {ANSWERS[hook][1]}; ')


@pytest.mark.parametrize("hook", ["attempt_ended", "call_ended"])
async def test_nobody_can_close_a_hook_that_only_observes(hook: str) -> None:
    def fail(*args: Any) -> Any:
        raise ValueError("out of cheese")

    broken = make_plugin("broken", on_error="closed", **{hook: make_hook(hook, fail)})

    assert (await kit_reaching(hook, broken).call()).status == 200


async def test_a_hook_that_fails_on_every_call_is_logged_at_powers_of_two(caplog: pytest.LogCaptureFixture) -> None:
    def fail(call: Any) -> Any:
        raise ValueError("out of cheese")

    kit = PipelineKit(make_plugin("broken", lookup=fail))

    for _ in range(20):
        await kit.call()

    assert [r.getMessage().rsplit("; ", 1)[1] for r in caplog.records] == [f"{n} so far" for n in (1, 2, 4, 8, 16)]
    assert kit.metric("hookline_hook_errors_total", plugin="broken", hook="lookup") == 20


async def test_a_hook_whose_own_task_was_cancelled_has_failed_and_the_call_is_not_cancelled(ends: Ends) -> None:
    async def lookup(call: Any) -> Any:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    kit = PipelineKit(make_plugin("broken", lookup=lookup), ends.plugin())

    delivered = await kit.call()

    assert delivered.status == 200
    assert ends[0].outcome == "ok"
    assert kit.metric("hookline_hook_errors_total", plugin="broken", hook="lookup") == 1


async def test_a_hook_that_swallows_its_cancellation_does_not_harm_who_waits_next(ends: Ends) -> None:
    async def lookup(call: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return None

    async def send(call: Any, attempt: Any) -> Reply:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return answer()

    kit = PipelineKit(
        make_plugin("stubborn", lookup=lookup), ends.plugin(), providers=[ScriptedProvider(send)], hook_timeout_s=0.01
    )

    assert (await kit.call()).status == 200
    assert ends[0].outcome == "ok"


# -- the time budget


async def test_waiting_on_purpose_suspends_the_budget() -> None:
    gate = asyncio.Event()

    async def admit(call: Any) -> Any:
        asyncio.get_running_loop().call_later(0.1, gate.set)
        await call.wait(gate.wait())

    kit = PipelineKit(make_plugin("queue", admit=admit), hook_timeout_s=0.02)

    assert (await kit.call()).status == 200


async def test_sleeping_on_purpose_suspends_the_budget_and_what_follows_has_what_was_left() -> None:
    async def admit(call: Any) -> Any:
        await call.sleep(0.05)
        await asyncio.Event().wait()

    kit = PipelineKit(make_plugin("queue", admit=admit), hook_timeout_s=0.02)

    assert (await kit.call()).json()["error"]["message"].startswith('plugin "queue" failed in admit')


async def test_waits_within_waits_give_the_budget_back_once() -> None:
    async def admit(call: Any) -> Any:
        await call.wait(call.wait(asyncio.sleep(0.05)))
        await asyncio.Event().wait()

    kit = PipelineKit(make_plugin("queue", admit=admit), hook_timeout_s=0.02)

    assert (await kit.call()).status == 500


async def test_each_hook_has_the_whole_budget() -> None:
    async def admit(call: Any) -> Any:
        await asyncio.sleep(0.06)

    kit = PipelineKit(*(make_plugin(f"slow{n}", admit=admit) for n in range(4)), hook_timeout_s=0.2)

    assert (await kit.call()).status == 200


async def test_hooks_after_an_awaited_settlement_still_have_a_budget(journal: Any) -> None:
    """Symptom: the settling task's timer was left on the call, so nothing watched the hooks of the next attempt."""

    async def hang(call: Any, attempt: Any) -> Any:
        await asyncio.Event().wait()

    kit = PipelineKit(
        make_plugin("money", admit_attempt=lambda call, target, attempt: journal.ticket("t", lambda: asyncio.sleep(0))),
        make_plugin("slow", after_failure=hang),
        providers=[ScriptedProvider(REFUSED)],
        hook_timeout_s=0.05,
    )

    assert (await kit.call()).status == 502


async def test_hooks_that_edit_a_late_answer_still_have_a_budget() -> None:
    """Symptom: once the deadline had passed, the timer was never armed again."""

    async def hang(call: Any, reply: Any) -> Any:
        await asyncio.Event().wait()

    async def send(call: Any, attempt: Any) -> Reply:
        PipelineKit.expire(call)
        await asyncio.Event().wait()
        raise AssertionError

    kit = PipelineKit(
        make_plugin("slow", edit_reply=hang), providers=[ScriptedProvider(send)], hook_timeout_s=0.05
    )  # fmt: skip

    assert (await kit.call()).json()["error"]["message"].startswith('plugin "slow" failed in edit_reply')


# -- combine: first


async def test_the_first_principal_wins_and_later_plugins_are_not_asked(journal: Any) -> None:
    def says(name: str, principal: Principal | None) -> type:
        def authenticate(call: Any) -> Principal | None:
            journal.append(f"{name} sees payload {call.payload}")
            return principal

        return make_plugin(name, authenticate=authenticate)

    kit = PipelineKit(says("a", None), says("b", Principal("b")), says("c", Principal("c")))
    call = kit.make_call()

    await kit.run(call)

    assert call.principal.key_id == "b"
    assert journal == ["a sees payload None", "b sees payload None"]


async def test_a_call_that_carries_its_principal_is_not_authenticated_again(journal: Any) -> None:
    kit = PipelineKit(make_plugin("auth", authenticate=lambda call: journal.append("asked")))
    call = kit.make_call(principal=Principal("job-owner"))

    await kit.run(call)

    assert journal == []
    assert call.principal.key_id == "job-owner"


async def test_nobody_who_authenticates_makes_everyone_anonymous() -> None:
    kit = PipelineKit()
    call = kit.make_call()

    await kit.run(call)

    assert (call.principal.key_id, call.principal.tenant) == ("anonymous", "default")


async def test_the_first_reply_of_lookup_answers_and_tickets_on_the_way_are_kept(journal: Any) -> None:
    provider = ScriptedProvider()
    kit = PipelineKit(
        make_plugin("lead", lookup=lambda call: journal.ticket("lead")),
        make_plugin("none", lookup=lambda call: None),
        make_plugin("cache", lookup=lambda call: Reply(200, {}, b"cached", source="cache")),
        make_plugin("late", lookup=lambda call: journal.append("asked")),
        journal.observer("watch"),
        providers=[provider],
    )

    delivered = await kit.call()

    assert delivered.body == b"cached"
    assert provider.sent == []
    assert journal == ["settle lead", "call_ended watch ok"]
    assert journal.results["lead"][0].source == "cache"
    assert journal.results["lead"][0].cost_nanousd == 0


async def test_the_first_step_decides_and_give_up_silences_later_plugins(journal: Any) -> None:
    kit = PipelineKit(
        make_plugin("a", after_failure=lambda call, attempt: None),
        make_plugin("b", after_failure=lambda call, attempt: GiveUp()),
        make_plugin("c", after_failure=lambda call, attempt: journal.append("asked")),
        providers=[ScriptedProvider(REFUSED)],
        deployments={"m": ["up/a", "up/b"]},
    )

    delivered = await kit.call({**CHAT, "model": "m"})

    assert delivered.status == 502
    assert len(kit.providers["up"].sent) == 1
    assert journal == []


async def test_the_first_rescue_answers(journal: Any) -> None:
    kit = PipelineKit(
        make_plugin("a", rescue=lambda call, error: None),
        make_plugin("b", rescue=lambda call, error: Reply(200, {}, b"stale", source="rescue")),
        make_plugin("c", rescue=lambda call, error: journal.append("asked")),
        journal.observer("watch"),
        providers=[ScriptedProvider(REFUSED)],
    )

    delivered = await kit.call()

    assert (delivered.status, delivered.body) == (200, b"stale")
    assert "call_ended watch ok" in journal
    assert journal.results["call_ended watch"][0].source == "rescue"
    assert "asked" not in journal


# -- combine: each


async def test_prepare_runs_for_each_in_order_and_its_edits_are_what_is_sent() -> None:
    def tag(name: str) -> type:
        def prepare(call: Any) -> None:
            call.edit_payload().setdefault("metadata", {})[name] = len(call.payload.get("metadata", {}))

        return make_plugin(name, prepare=prepare)

    kit = PipelineKit(tag("a"), tag("b"))

    await kit.call()

    sent, _ = kit.providers["up"].sent[0]
    assert sent.payload["metadata"] == {"a": 0, "b": 1}
    assert b'"metadata":{"a":0,"b":1}' in sent.body


@pytest.mark.parametrize("is_async", [False, True])
async def test_ends_are_observed_by_each_backwards_even_where_one_fails(is_async: bool, journal: Any) -> None:
    def fail(*args: Any) -> Any:
        journal.append("broken")
        raise ValueError("out of cheese")

    def broken(hook: str) -> Any:
        return make_hook(hook, as_async(fail) if is_async else fail, is_async=is_async)

    kit = PipelineKit(
        journal.observer("a"),
        make_plugin("b", attempt_ended=broken("attempt_ended"), call_ended=broken("call_ended")),
        journal.observer("c"),
    )

    await kit.call()

    assert journal == [
        "attempt_ended c 1", "broken", "attempt_ended a 1", "call_ended c ok", "broken", "call_ended a ok",
    ]  # fmt: skip


# -- combine: all


async def test_all_tickets_of_admit_and_admit_attempt_are_kept_and_settled_backwards(journal: Any) -> None:
    async def admit(call: Any) -> Any:
        return journal.ticket("admit b")

    async def admit_attempt(call: Any, target: Any, attempt: Any) -> Any:
        return journal.ticket("attempt b")

    kit = PipelineKit(
        make_plugin(
            "a",
            admit=lambda call: journal.ticket("admit a"),
            admit_attempt=lambda call, target, attempt: journal.ticket("attempt a"),
        ),
        make_plugin("none", admit=lambda call: None, admit_attempt=lambda call, target, attempt: None),
        make_plugin("b", admit=admit, admit_attempt=admit_attempt),
    )

    await kit.call()

    assert journal == ["settle attempt b", "settle attempt a", "settle admit b", "settle admit a"]


# -- combine: pipe


async def test_select_hands_each_plugin_what_the_one_before_chose() -> None:
    async def drop_first(call: Any, targets: Any) -> Any:
        return targets[1:]

    kit = PipelineKit(
        make_plugin("a", select=lambda call, targets: list(reversed(targets))),
        make_plugin("b", select=drop_first),
        deployments={"m": ["up/1", "up/2", "up/3"]},
    )

    await kit.call({**CHAT, "model": "m"})

    assert [attempt.deployment.id for _, attempt in kit.providers["up"].sent] == ["up/2"]


async def test_edit_reply_goes_backwards_and_hands_on_the_reply() -> None:
    def sign(name: str) -> type:
        def edit_reply(call: Any, reply: Reply) -> Reply:
            reply.headers["x-signed"] = reply.headers.get("x-signed", "") + name
            return reply

        return make_plugin(name, edit_reply=edit_reply)

    delivered = await PipelineKit(sign("a"), sign("b"), sign("c")).call()

    assert delivered.headers["x-signed"] == "cba"


async def test_edit_event_goes_backwards_and_hands_on_the_event() -> None:
    def sign(name: str) -> type:
        def edit_event(call: Any, event: Event) -> Event:
            if event.json() is not None:
                event.replace_json({**event.json(), "signed": event.json().get("signed", "") + name})
            return event

        return make_plugin(name, edit_event=edit_event)

    delivered = await kit_reaching("edit_event", sign("a"), sign("b"), sign("c")).call(STREAMED)

    assert delivered.body.count(b'"signed":"cba"') == 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("hook", ["select", "edit_reply"])
async def test_none_from_a_hook_that_hands_on_its_argument_is_a_failure(hook: str, is_async: bool, ends: Ends) -> None:
    async def nothing(*args: Any) -> None: ...

    function = make_hook(hook, nothing if is_async else lambda *args: None, is_async=is_async)

    delivered = await PipelineKit(make_plugin("broken", **{hook: function}), ends.plugin()).call()

    assert_failed_closed(hook, delivered, ends[0])


# -- Rejected


@pytest.mark.parametrize("hook", [hook for hook in PHASES if hook in MAY_REJECT and hook != "edit_event"])
async def test_rejected_ends_the_call_with_its_error_and_gives_back_what_was_taken(hook: str, journal: Any) -> None:
    def reject(*args: Any) -> Any:
        raise Rejected(RateLimited("three calls a minute, this is the fourth", retry_after_s=7.2))

    kit = PipelineKit(
        make_plugin("first", admit=lambda call: journal.ticket("slot")),
        make_plugin("gate", **{hook: make_hook(hook, reject)}),
        journal.observer("watch"),
    )

    delivered = await kit.call()

    assert delivered.status == 429
    assert delivered.json()["error"]["message"] == "three calls a minute, this is the fourth"
    assert delivered.headers["retry-after"] == "8"
    was_sent = hook == "edit_reply"
    assert len(kit.providers["up"].sent) == was_sent
    was_taken = PHASES[hook].order >= PHASES["admit"].order
    assert journal == [
        *(["attempt_ended watch 1"] if was_sent else []),
        *(["settle slot"] if was_taken else []),
        "call_ended watch rejected",
    ]
    result = journal.results["call_ended watch"][0]
    assert (result.status, result.cost_nanousd) == (429, 20_000 if was_sent else 0)
    assert isinstance(result.error, RateLimited)


async def test_rejected_by_authenticate_leaves_the_body_unread(journal: Any) -> None:
    def authenticate(call: Any) -> Any:
        raise Rejected(Unauthenticated("no such key"))

    async def load(call: Any) -> None:
        journal.append("read")

    kit = PipelineKit(make_plugin("auth", authenticate=authenticate))

    delivered = await kit.run(kit.make_call(load=load))

    assert delivered.status == 401
    assert delivered.json()["error"]["code"] == "invalid_api_key"
    assert journal == []


async def test_rejected_by_edit_event_ends_the_stream_with_its_error(ends: Ends) -> None:
    def edit_event(call: Any, event: Event) -> Any:
        raise Rejected(BadRequest("this may not be said", code="content_policy"))

    delivered = await kit_reaching("edit_event", make_plugin("gate", edit_event=edit_event), ends.plugin()).call(
        STREAMED
    )

    assert delivered.body == (
        b'data: {"error":{"message":"this may not be said","type":"invalid_request_error","param":null,'
        b'"code":"content_policy"}}\n\n'
    )
    assert delivered.error is not None
    assert ends[0].outcome == "rejected"


@pytest.mark.parametrize("signal", [Rejected(RateLimited("no")), Skip("no")])
@pytest.mark.parametrize("hook", [hook for hook in PHASES if hook not in MAY_REJECT])
async def test_hooks_that_cannot_end_the_call_fail_open_when_they_try(
    hook: str, signal: Exception, journal: Any
) -> None:
    """Symptom: `Rejected` out of attempt_ended kept every later ticket from settling."""

    def reject(*args: Any) -> Any:
        raise signal

    kit = kit_reaching(
        hook,
        journal.observer("watch"),
        make_plugin(
            "gate",
            admit=lambda call: journal.ticket("slot"),
            admit_attempt=lambda call, target, attempt: journal.ticket("money"),
            **{hook: make_hook(hook, reject)},
        ),
    )

    delivered = await kit.call()

    is_failure = hook in NEEDS_FAILURE
    assert delivered.status == (502 if is_failure else 200)
    outcome = "upstream_error" if is_failure else "ok"
    assert journal == ["attempt_ended watch 1", "settle money", "settle slot", f"call_ended watch {outcome}"]
    assert kit.metric("hookline_hook_errors_total", plugin="gate", hook=hook) == 1


# -- Skip


@pytest.mark.parametrize("is_async", [False, True])
async def test_skip_drops_the_target_and_gives_back_what_was_taken_for_it(is_async: bool, journal: Any) -> None:
    def skip(call: Any, target: Any, attempt: Any) -> Any:
        if target.deployment.id == "up/1":
            raise Skip("circuit open")

    function = make_hook("admit_attempt", as_async(skip) if is_async else skip, is_async=is_async)
    kit = PipelineKit(
        journal.observer("watch"),
        make_plugin(
            "money", admit_attempt=lambda call, target, attempt: journal.ticket(f"money {target.deployment.id}")
        ),
        make_plugin("breaker", admit_attempt=function),
        deployments={"m": ["up/1", "up/2"]},
    )

    delivered = await kit.call({**CHAT, "model": "m"})

    assert delivered.status == 200
    assert delivered.headers["x-hookline-deployment"] == "up/2"
    assert delivered.headers["x-hookline-attempts"] == "1"
    assert journal == ["settle money up/1", "attempt_ended watch 1", "settle money up/2", "call_ended watch ok"]
    assert journal.results["money up/1"][0].outcome == "rejected"
    assert kit.metric("hookline_hook_errors_total", plugin="breaker", hook="admit_attempt") == 0


@pytest.mark.parametrize("hook", sorted(MAY_REJECT - {"admit_attempt"}))
async def test_skip_means_nothing_where_there_is_no_target(hook: str, ends: Ends) -> None:
    def skip(*args: Any) -> Any:
        raise Skip("not me")

    broken = make_plugin("broken", **{hook: make_hook(hook, skip)})

    delivered = await kit_reaching(hook, broken, ends.plugin()).call(STREAMED if hook == "edit_event" else CHAT)

    if hook in CLOSED:
        assert_failed_closed(hook, delivered, ends[0])
    else:
        assert delivered.status == 200


def as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any) -> Any:
        return function(*args)

    return run
