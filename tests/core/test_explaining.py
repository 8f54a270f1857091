"""Explanations: the dry run goes on after a refusal, and each candidate has its reasons."""

from __future__ import annotations

import asyncio
from typing import Any

from hookline import FINDINGS, BadRequest, RateLimited, Rejected, Reply, Skip, Unavailable, explain, hookimpl
from hookline.testing.kit import PipelineKit, make_plugin

ASKED = {"model": "m", "messages": []}


def dry(name: str, **members: Any) -> type:
    return make_plugin(name, supports_dry_run=True, **members)


async def explained(*plugins: type, is_own: bool = False) -> dict[str, Any]:
    kit = PipelineKit(*plugins, deployments={"m": ["up/1", "up/2", "up/3"]})
    call = kit.make_call(ASKED, is_dry_run=True)
    call.is_explained = True
    delivered = await kit.run(call)
    assert kit.providers["up"].sent == []
    reply = Reply(delivered.status, delivered.headers, delivered.body)
    return explain(call, reply, is_own=is_own)


async def test_every_candidate_says_what_became_of_it_and_why() -> None:
    def select(call: Any, targets: Any) -> Any:
        call.note("picker", "left out", "up/1: too short")
        targets[2].reason = "cheapest"
        return [targets[2], targets[1]]

    class Slow:
        supports_dry_run = True

        @hookimpl
        async def admit_attempt(self, call: Any, target: Any, attempt: Any) -> None:
            await asyncio.sleep(0)
            if target.deployment.id == "up/2":
                raise Skip("circuit open", Unavailable("circuit open"))

    told = await explained(dry("picker", select=select), Slow)

    assert told["can_proceed"] is True
    assert [(c["deployment"], c["verdict"], c["rank"]) for c in told["candidates"]] == [
        ("up/3", "kept", 1),
        ("up/2", "skipped", 2),
        ("up/1", "left out", None),
    ]
    third, second, first = told["candidates"]
    assert [(r["plugin"], r["text"]) for r in third["reasons"]] == [
        ("picker", "1 of 2, cheapest"),
        ("pipeline", "cheapest"),
    ]
    assert [(r["plugin"], r["text"]) for r in second["reasons"] if r["verdict"] == "skips"] == [
        ("Slow", "circuit open")
    ]
    assert first["reasons"] == [{"plugin": "picker", "verdict": "left out", "text": "too short"}]


async def test_it_goes_on_after_a_refusal_and_after_an_answer() -> None:
    def admit(call: Any) -> None:
        raise Rejected(RateLimited("too many", retry_after_s=3))

    def lookup(call: Any) -> Reply:
        return Reply(200, {"age": "7"}, b"{}", source="cache")

    told = await explained(dry("limit", admit=admit), dry("store", lookup=lookup))

    assert (told["can_proceed"], told["status"], told["error"]["message"]) == (False, 429, "too many")
    assert [(r["plugin"], r["status"]) for r in told["refusals"]] == [("limit", 429)]
    assert told["answered_by"] == "store"
    assert [c["verdict"] for c in told["candidates"]] == ["kept"] * 3


async def test_what_a_kept_answer_comes_before_does_not_stop_the_call() -> None:
    def select(call: Any, targets: Any) -> Any:
        raise Rejected(BadRequest("too dear"))

    kept = dry("store", lookup=lambda call: Reply(200, {}, b"{}", source="cache"))
    told = await explained(kept, dry("chooser", select=select))

    assert (told["can_proceed"], told["status"], told["error"], told["answered_by"]) == (True, 200, None, "store")
    assert [refusal["plugin"] for refusal in told["refusals"]] == ["chooser"]


async def test_when_none_may_be_tried_it_says_what_the_client_would_be_told() -> None:
    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        raise Skip("ill", Unavailable("ill", retry_after_s=4))

    told = await explained(dry("breaker", admit_attempt=admit_attempt))

    assert (told["can_proceed"], told["status"], told["worst_case_usd"]) == (False, 503, None)
    assert [c["verdict"] for c in told["candidates"]] == ["skipped"] * 3


async def test_when_none_qualifies_it_says_all_the_same_what_is_left_and_what_each_would_cost() -> None:
    def select(call: Any, targets: Any) -> Any:
        for target in targets:
            call.note("picker", "left out", f"{target.deployment.id}: too short")
        raise Rejected(BadRequest("all are too short"))

    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        findings = call.slots.setdefault(FINDINGS, {})
        findings["budgets"] = [{"scope": "key:ci"}]
        findings.setdefault("worst_case_usd", {})[target.deployment.id] = 0.5

    told = await explained(dry("picker", select=select), dry("purse", admit_attempt=admit_attempt))

    assert (told["can_proceed"], told["status"], told["error"]["message"]) == (False, 400, "all are too short")
    assert told["budgets"] == [{"scope": "key:ci"}]
    assert told["worst_case_usd"] is None
    reasons = [{"plugin": "picker", "verdict": "left out", "text": "too short"}]
    assert told["candidates"] == [
        {"deployment": id, "verdict": "left out", "rank": None, "worst_case_usd": 0.5, "reasons": reasons}
        for id in ("up/1", "up/2", "up/3")
    ]


async def test_facts_of_plugins_are_members_and_clients_learn_nothing_of_everyone() -> None:
    def admit(call: Any) -> None:
        call.slots.setdefault(FINDINGS, {})["limits"] = [{"scope": "key:ci"}, {"scope": "global"}]

    assert [one["scope"] for one in (await explained(dry("p", admit=admit)))["limits"]] == ["key:ci", "global"]
    assert [one["scope"] for one in (await explained(dry("p", admit=admit), is_own=True))["limits"]] == ["key:ci"]


async def test_who_cannot_answer_a_dry_run_is_named_if_it_would_have_had_a_say() -> None:
    def break_it(*_: Any) -> None:
        raise AssertionError("asked")

    told = await explained(
        make_plugin("taker", admit=lambda call: break_it()),
        make_plugin("watcher", call_ended=lambda call, result: None),
    )

    assert [n["plugin"] for n in told["notes"] if n["verdict"] == "not asked"] == ["taker"]


async def test_a_plugin_that_says_its_ranks_is_not_repeated() -> None:
    def select(call: Any, targets: Any) -> Any:
        for place, target in enumerate(reversed(targets), 1):
            call.note("picker", "ranked", f"{place}. {target.deployment.id}: weight {place}")
        return targets[::-1]

    told = await explained(dry("picker", select=select))

    assert [c["deployment"] for c in told["candidates"]] == ["up/3", "up/2", "up/1"]
    assert told["candidates"][0]["reasons"][0] == {"plugin": "picker", "verdict": "ranked", "text": "weight 1"}
    assert len([n for n in told["notes"] if n["verdict"] == "ranked"]) == 3
