"""A call that another call asks for: what becomes of a reply when who asked is cancelled as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from hookline import Call, Reply
from hookline.begun_reply import BegunReply
from hookline.errors import ClientGone
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider


async def no_chunks() -> AsyncIterator[bytes]:
    return
    yield


@pytest.mark.parametrize("make_body", [lambda: b"{}", no_chunks], ids=["whole", "stream"])
async def test_a_reply_at_the_moment_of_the_cancellation_finds_its_reader_gone(
    make_body: Callable[[], Any],
) -> None:
    told: list[BaseException] = []
    is_running = asyncio.Event()

    async def run(call: Call, deliver: Callable[[Reply], Coroutine[Any, Any, None]]) -> None:
        is_running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # its own deadline comes in the same turn, and it has a reply
            try:
                await deliver(Reply(504, {}, make_body()))
            except ClientGone as error:
                told.append(error)

    asking = asyncio.ensure_future(BegunReply(PipelineKit(providers=[ScriptedProvider()]).make_call(CHAT)).begin(run))
    await is_running.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert [str(error) for error in told] == ["the reader of the reply has left"]
