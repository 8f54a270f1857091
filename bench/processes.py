"""Processes under measurement: start, pin to a core, CPU time and memory of the whole tree, stop.

Lives here: everything that reads /proc. Elsewhere: which command is started (contenders.py), what the figures mean (measure.py).
Idea: a proxy is its process tree; the CPU time of a child that already ended is found in its parent's `cutime` and `cstime`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_WAIT_S = 8.0
_TAIL_LINES = 40


def parse_stat(text: str) -> tuple[int, float]:
    """In: a line of /proc/PID/stat. Out: parent pid, CPU seconds of the process and of its children that ended."""
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return int(fields[1]), sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S


def find_tree(pid: int) -> list[int]:
    """Out: pid and all its living descendants; empty when it has ended."""
    children: dict[int, list[int]] = {}
    alive: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parent, _ = parse_stat(Path(f"/proc/{name}/stat").read_text())
                children.setdefault(parent, []).append(int(name))
                alive.add(int(name))
    tree, queue = [], [pid] if pid in alive else []
    while queue:
        tree.append(queue.pop())
        queue += children.get(tree[-1], [])
    return tree


def read_cpu_s(pid: int) -> float:
    """Out: user and system seconds that pid's tree has used so far."""
    total_s = 0.0
    for member in find_tree(pid):
        with contextlib.suppress(OSError):
            total_s += parse_stat(Path(f"/proc/{member}/stat").read_text())[1]
    return total_s


def read_rss_mib(pid: int) -> float:
    """Out: resident memory of pid's tree; pages shared between its processes count once per process."""
    kib = 0
    for member in find_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    kib += int(line.split()[1])
    return kib / 1024


def find_free_port() -> int:
    """Out: a loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def choose_cores() -> tuple[int, int, int]:
    """Out: cores for proxy, load generator and upstream; the last two share one where there are only two."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[1 % len(cores)], cores[2] if len(cores) > 2 else cores[1 % len(cores)]


class Process:
    """A started command, pinned to one core, its output read all the time so that it never blocks on a full pipe."""

    def __init__(
        self, argv: Sequence[str], *, core: int, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.started_at = time.monotonic()
        self._popen = subprocess.Popen(
            ["taskset", "-c", str(core), *argv],  # execs, so the pid is the command's own
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.lines = 0
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def tail(self) -> str:
        """The last lines it printed, to show when it failed."""
        return b"\n".join(self._tail).decode(errors="replace").strip()

    def wait_idle(self, *, limit_s: float) -> None:
        """Returns once the tree rests (work left over from a load run is done), at the latest after limit_s."""
        end = time.monotonic() + limit_s
        before_s = read_cpu_s(self.pid)
        while time.monotonic() < end:
            time.sleep(0.25)
            now_s = read_cpu_s(self.pid)
            if now_s - before_s <= 0.03:
                return
            before_s = now_s

    def stop(self) -> None:
        """Ends the whole session it started: SIGTERM, after a while SIGKILL."""
        self._signal_all(signal.SIGTERM)
        try:
            self._popen.wait(_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_all(signal.SIGKILL)  # also what outlived its parent
            self._popen.wait()

    def join_output(self) -> None:
        """Returns when all its output was read: after it and its children ended."""
        self._reader.join()

    def send_signal(self, number: signal.Signals) -> None:
        """To the command itself, as an operator's `kill` does; not to its children."""
        self._popen.send_signal(number)

    def _signal_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _read_output(self) -> None:
        assert self._popen.stdout is not None
        rest = b""
        with self._popen.stdout as pipe:
            while block := os.read(pipe.fileno(), 1 << 20):
                self.lines += block.count(b"\n")
                *whole, rest = (rest + block[-65536:]).split(b"\n")
                self._tail.extend(whole[-_TAIL_LINES:])
        if rest:
            self._tail.append(rest)
