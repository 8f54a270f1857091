"""The talk between a server and its successor, from the successor's end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hookline.handover import DRAIN, ENDED, HandoverDesk
from hookline.launch import READY


@contextlib.asynccontextmanager
async def taken(folder: Path, word: bytes) -> AsyncIterator[tuple[HandoverDesk, socket.socket]]:
    """A desk whose successor has got the socket and said `word`."""
    is_taken = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as heir:
        desk = HandoverDesk(folder / "h.sock", listener, may_overlap=lambda: False, on_taken=is_taken.set)
        heir.connect(str(folder / "h.sock"))
        await asyncio.get_running_loop().run_in_executor(None, socket.recv_fds, heir, 1024, 1)
        heir.sendall(word)
        await is_taken.wait()
        desk.close()
        yield desk, heir


async def is_orphaned(desk: HandoverDesk) -> bool:
    return await asyncio.to_thread(desk.is_orphaned)


@pytest.mark.parametrize(
    ("then", "expected"), [(lambda heir: heir.sendall(READY), False), (lambda heir: heir.close(), True)]
)
async def test_who_waits_for_our_end_is_told_of_it_and_says_that_it_serves_or_dies(
    tmp_path: Path, then: Callable[[socket.socket], None], expected: bool
) -> None:
    async with taken(tmp_path, DRAIN) as (desk, heir):
        orphaned = asyncio.ensure_future(is_orphaned(desk))
        told = await asyncio.to_thread(heir.recv, len(ENDED))
        then(heir)

        assert told == ENDED
        assert await orphaned is expected


async def test_a_server_that_is_told_to_stop_keeps_its_successor_waiting_until_its_state_is_closed(
    tmp_path: Path,
) -> None:
    async with taken(tmp_path, DRAIN) as (desk, heir):
        desk.disown()
        heir.setblocking(False)
        with pytest.raises(BlockingIOError):
            heir.recv(1)

        assert not desk.is_orphaned()
        assert heir.recv(len(ENDED)) == ENDED


async def test_a_successor_that_serves_beside_us_is_not_waited_for(tmp_path: Path) -> None:
    async with taken(tmp_path, READY) as (desk, _):
        assert not desk.is_orphaned()
