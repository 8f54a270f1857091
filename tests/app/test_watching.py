from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import pytest

from hookline.errors import StartupError
from hookline.metrics_registry import MetricsRegistry
from hookline.reload import stamps_of, watch
from hookline.watchdog import Watchdog, find_culprit


async def test_a_change_is_acted_on_once_it_has_come_to_rest(tmp_path: Path) -> None:
    """An editor writes a file in pieces: half a file must not be loaded."""
    file = tmp_path / "a"
    file.write_text("whole")
    writes = {2: "ha", 3: "half", 7: "half, whole"}
    looks = 0
    seen: list[str] = []

    def find_paths() -> list[Path]:
        nonlocal looks
        looks += 1
        if looks in writes:
            file.write_text(writes[looks])
        return [file]

    async def on_change() -> None:
        seen.append(f"{looks}: {file.read_text()}")

    task = asyncio.create_task(watch(find_paths, on_change, look_every_s=0))
    while looks < 12:  # noqa: ASYNC110 - counts turns of the loop
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert seen == ["4: half", "8: half, whole"]


async def test_a_change_before_the_first_look_counts_from_what_was_seen_before(tmp_path: Path) -> None:
    """Who reads the ready line and changes a file at once has changed it."""
    file = tmp_path / "a"
    file.write_text("old")
    since = stamps_of([file])
    file.write_text("newer")
    changed = asyncio.Event()

    async def on_change() -> None:
        changed.set()

    task = asyncio.create_task(watch(lambda: [file], on_change, since=since, look_every_s=0))
    await changed.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_new_path_is_not_a_change(tmp_path: Path) -> None:
    paths = [tmp_path / "a"]
    looks = 0

    def find_paths() -> list[Path]:
        nonlocal looks
        looks += 1
        if looks == 3:
            (tmp_path / "b").write_text("new")
            paths.append(tmp_path / "b")
        return paths

    async def on_change() -> None:
        raise AssertionError("nothing has changed")

    task = asyncio.create_task(watch(find_paths, on_change, look_every_s=0))
    while looks < 10:  # noqa: ASYNC110 - counts turns of the loop
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_stamps_tell_a_replaced_file_from_the_old_one(tmp_path: Path) -> None:
    """An editor writes a new file over the old one: same size, and the time may be the same on a coarse file system."""
    file = tmp_path / "a"
    file.write_text("1")
    os.utime(file, ns=(5, 5))
    before = stamps_of([file, tmp_path / "missing"])

    (tmp_path / "b").write_text("2")
    os.utime(tmp_path / "b", ns=(5, 5))
    (tmp_path / "b").replace(file)

    assert before[tmp_path / "missing"] is None
    assert stamps_of([file])[file] != before[file]


def hook() -> None:
    inner()


def inner() -> None:
    global culprit
    culprit = find_culprit(sys._getframe(), HOOKS)


culprit: object = None
HOOKS = {(hook.__code__.co_filename, hook.__code__.co_firstlineno): ("mine", "prepare")}


def test_the_innermost_hook_on_the_stack_is_the_culprit() -> None:
    hook()

    assert culprit == ("mine", "prepare", next(iter(HOOKS)))
    assert find_culprit(sys._getframe(), HOOKS) is None


async def test_a_blocked_loop_is_told_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = MetricsRegistry()
    watchdog = Watchdog(metrics, dict, blocked_after_s=0.05)
    watchdog.start()

    deadline = time.monotonic() + 30
    while "stood still" not in caplog.text and time.monotonic() < deadline:  # a busy loop: this is what blocks
        pass
    watchdog.stop()

    assert re.search(r"the event loop has stood still for \d+\.\d s, at \S+:\d+ \(", caplog.text)
    assert b'hookline_loop_blocked_total{plugin=""} 1.0' in metrics.render()


def test_a_family_asked_for_twice_is_one_and_another_shape_is_refused() -> None:
    metrics = MetricsRegistry()
    first = metrics.counter("x_total", "X.", ("a",))
    first("1").inc(2)

    metrics.counter("x_total", "X.", ("a",))("1").inc()

    assert b'x_total{a="1"} 3.0' in metrics.render()
    with pytest.raises(StartupError, match="other labels"):
        metrics.counter("x_total", "X.", ("b",))
    with pytest.raises(StartupError, match="other labels"):
        metrics.gauge("x_total", "X.", ("a",))


def test_histograms_have_the_given_buckets_and_no_created_series() -> None:
    metrics = MetricsRegistry()
    metrics.histogram("h_seconds", "H.", buckets=(0.1, 1))().observe(0.5)
    metrics.gauge("g", "G.", ("x",))("y").set(4)

    text = metrics.render().decode()

    assert 'h_seconds_bucket{le="0.1"} 0.0' in text
    assert 'h_seconds_bucket{le="1.0"} 1.0' in text
    assert 'g{x="y"} 4.0' in text
    assert "_created" not in text
    assert "process_resident_memory_bytes" in text
