"""CPU time and memory of a process tree, read from /proc."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from bench.processes import Process, find_tree, parse_stat, read_cpu_s, read_rss_mib

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
PARENT = f"""
import subprocess, sys
living = subprocess.Popen([sys.executable, "-c", {BURN + 'print("burnt", flush=True); input()'!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
living.stdout.readline()
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
print(living.pid, flush=True)
__import__("signal").pause()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def parent():
    process = Process([sys.executable, "-c", PARENT], core=min(os.sched_getaffinity(0)))
    while not process.tail and process.is_running:
        pass  # bounded by the test's time limit: the line comes, or the process ends
    yield process
    process.stop()


def test_the_tree_counts_a_living_child_and_one_that_ended(parent):
    child = int(parent.tail)

    assert {parent.pid, child} <= set(find_tree(parent.pid))
    assert read_cpu_s(parent.pid) >= 0.55  # 0.3 s each, the parent itself on top
    assert read_cpu_s(child) < read_cpu_s(parent.pid)
    assert read_rss_mib(parent.pid) > read_rss_mib(child) > 1


def test_stop_ends_the_whole_session(parent):
    child = int(parent.tail)

    parent.stop()

    assert not parent.is_running
    assert find_tree(parent.pid) == []
    while is_alive(child):
        pass  # bounded by the test's time limit


def test_a_process_name_may_hold_spaces_and_brackets():
    ticks = os.sysconf("SC_CLK_TCK")
    line = f"42 (a) b (c) S 7 42 42 0 -1 0 0 0 0 0 {ticks} {2 * ticks} {3 * ticks} {4 * ticks} 20 0 1 0"

    assert parse_stat(line) == (7, 10.0)


def test_output_is_read_counted_and_its_end_kept():
    process = Process([sys.executable, "-c", "for i in range(200_000): print(i)"], core=min(os.sched_getaffinity(0)))
    try:
        while process.lines < 200_000 and process.is_running:
            pass  # bounded by the test's time limit; without a reader it would block on its full pipe for ever
        process.join_output()
    finally:
        process.stop()

    assert process.lines == 200_000
    assert process.tail.splitlines()[-1] == "199999"
