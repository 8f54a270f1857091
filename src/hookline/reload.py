"""Watching files for `--reload`.

Lives here: noticing that proxy.toml or a plugin's file has changed. Elsewhere: what a reload does (app.py); SIGHUP does the same without watching.
Idea: a look at a handful of files twice a second needs no library and works on every file system; a file that is being written counts when two
looks in a row agree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

LOOK_EVERY_S = 0.5

Stamp = tuple[int, int, int] | None
"""Time, size and inode of a file; None if there is none."""


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """What the files look like now."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


async def watch(
    find_paths: Callable[[], Iterable[Path]],
    on_change: Callable[[], Awaitable[object]],
    *,
    since: dict[Path, Stamp] | None = None,
    look_every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `on_change` after one of the files has changed since `since` (without it: since now) and come to rest. Runs until cancelled."""
    acted_on = stamps_of(find_paths()) if since is None else since
    seen = acted_on
    while True:
        await asyncio.sleep(look_every_s)
        now = stamps_of(find_paths())
        is_at_rest, seen = now == seen, now
        # Paths that a reload has added are not a change of their files.
        if is_at_rest and any(acted_on.get(path, stamp) != stamp for path, stamp in now.items()):
            acted_on = now
            await on_change()
        elif is_at_rest:
            acted_on = now
