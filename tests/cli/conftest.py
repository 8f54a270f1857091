"""Real `hookline` processes, in a folder of their own, ended with the test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

READY_WITHIN_S = 60
HOOKLINE = [sys.executable, "-m", "hookline"]
DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'
BARE = "[server]\nport = 0\n[chain]\nplugins = []\n" + DEMO


class Server:
    """A running `hookline serve`; its stderr is collected line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._has_ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                self._grown.notify_all()
        with self._grown:
            self._has_ended = True
            self._grown.notify_all()

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """The `count`-th stderr line that matches; fails when the process ends or takes too long."""
        with self._grown:
            self._grown.wait_for(lambda: self._has_ended or len(self._matches(pattern)) >= count, READY_WITHIN_S)
        found = self._matches(pattern)
        assert len(found) >= count, f"never said {pattern!r}:\n" + "\n".join(self.lines)
        return found[count - 1]

    def _matches(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in list(self.lines) if (found := re.search(pattern, line))]

    @property
    def base_url(self) -> str:
        return self.wait_for(r"serves (http://\S+)/v1")[1]

    @property
    def worker_pids(self) -> list[int]:
        """Children of the supervisor."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(READY_WITHIN_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: `run("check", "-c", "proxy.toml")`."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HOOKLINE, *arguments],
            cwd=folder,
            env=clean_environ(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Server]]:
    """Start `hookline serve` with a proxy.toml of this text (None: without one) and wait until it is ready."""
    servers: list[Server] = []

    def serve(text: str | None = BARE, *arguments: str, **environ: str) -> Server:
        if text is not None:
            (folder / "proxy.toml").write_text(text)
        server = Server(
            subprocess.Popen(
                [*HOOKLINE, "serve", *arguments],
                cwd=folder,
                env=clean_environ(environ),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        servers.append(server)
        server.wait_for(r"serves (http://\S+)/v1")
        return server

    yield serve
    for server in servers:
        pids = [*server.worker_pids, server.process.pid] if server.process.poll() is None else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait(10)


def clean_environ(extra: dict[str, str]) -> dict[str, str]:
    """This environment without what would change a configuration."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("HOOKLINE_", "OPENAI_"))} | extra
