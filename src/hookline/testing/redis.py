"""A real redis-server for tests, ended with them.

Lives here: starting, losing and starting it again. Elsewhere: installing it (scripts/services.sh), a gateway that uses it (process.py).
Idea: it writes no file, so what was stopped comes back empty on the same port."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType

READY = "Ready to accept connections"


class RedisServer:
    """`redis-server` on a free loopback port; ready when the constructor returns. Raises AssertionError with what it said if it does not get ready."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        bound = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder))
        self._process = subprocess.Popen(
            ["redis-server", *bound, "--save", "", "--appendonly", "no"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if READY in line:
                return
        raise AssertionError("redis-server does not start:\n" + "".join(said))

    def freeze(self) -> None:
        """It answers nothing, and its connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on, with all it knows."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it at once, with all it knows."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
