"""Hooks that wait: each runs in one task from its first line to its last, and always has its time budget."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline.pipeline_settings import PipelineSettings
from hookline.testing.kit import PipelineKit, make_plugin


@pytest.mark.parametrize("hook", ["attempt_ended", "call_ended"])
async def test_a_timeout_that_an_ending_hook_sets_itself_ends_its_own_wait(hook: str) -> None:
    """Ends that wait go on in a task of their own; a timeout entered in the call's task would cancel the call."""
    seen: list[str] = []

    async def end() -> None:
        begun_in = asyncio.current_task()
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")
        assert asyncio.current_task() is begun_in

    async def attempt_ended(call: Any, attempt: Any) -> None:
        await end()

    async def call_ended(call: Any, result: Any) -> None:
        await end()

    kit = PipelineKit(make_plugin("patient", **{hook: attempt_ended if hook == "attempt_ended" else call_ended}))

    delivered = await kit.call()
    await kit.pipeline.drained()

    assert (delivered.status, seen) == (200, ["timeout"])


async def test_a_hook_after_an_end_that_waited_on_purpose_still_has_its_budget() -> None:
    async def attempt_ended(call: Any, attempt: Any) -> None:
        await call.sleep(0)

    async def edit_reply(call: Any, reply: Any) -> Any:
        await asyncio.Event().wait()

    kit = PipelineKit(make_plugin("slow", attempt_ended=attempt_ended, edit_reply=edit_reply), hook_timeout_s=0.01)

    assert (await kit.call()).status == 500


async def test_the_edit_of_a_late_answer_has_its_budget_although_an_end_still_ran() -> None:
    let_go = asyncio.Event()

    async def attempt_ended(call: Any, attempt: Any) -> None:
        asyncio.get_running_loop().call_later(0.05, let_go.set)
        await let_go.wait()

    async def edit_reply(call: Any, reply: Any) -> Any:
        await asyncio.Event().wait()

    plugin = make_plugin("slow", attempt_ended=attempt_ended, edit_reply=edit_reply)
    kit = PipelineKit(plugin, hook_timeout_s=0.1, settings=PipelineSettings(total_timeout_s=0.01))

    assert (await kit.call()).status == 500


async def test_the_budget_stands_still_while_any_of_several_waits_lasts() -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def lookup(call: Any) -> None:
        asyncio.get_running_loop().call_soon(first.set)
        asyncio.get_running_loop().call_later(0.05, second.set)
        await asyncio.gather(call.wait(first.wait()), call.wait(second.wait()))

    kit = PipelineKit(make_plugin("patient", lookup=lookup), hook_timeout_s=0.01)

    await kit.call()

    assert kit.metric("hookline_hook_errors_total", plugin="patient", hook="lookup") == 0
