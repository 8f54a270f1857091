"""A real `hookline serve` process for tests, ended with them.

Lives here: starting, reading its stderr, ending. Elsewhere: a pipeline without a process (kit.py), the upstream it calls (upstream.py).
Idea: what a process says on stderr is what a test waits for; nothing sleeps.

    with ProxyProcess(folder, text='[providers.demo]\\nkind = "demo"\\ndefault = true\\n') as proxy:
        openai.OpenAI(base_url=proxy.base_url + "/v1", api_key="none")"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

HOOKLINE = (sys.executable, "-m", "hookline")
READY_WITHIN_S = 60
READY = r"serves (http://\S+)/v1"


def clean_environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what would change what a gateway does, and `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOOKLINE_", "OPENAI_", "ANTHROPIC_"))}
    return kept | dict(more or {})


class ProxyProcess:
    """`hookline serve` in `folder`, on a free port unless `text` names one; ready when the constructor returns.

    `text` becomes folder/proxy.toml (None: there is none). Raises AssertionError with its stderr if it does not get ready."""

    def __init__(
        self, folder: Path, text: str | None, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        if text is not None:
            (folder / "proxy.toml").write_text(text)
        self.process = subprocess.Popen(
            [*HOOKLINE, "serve", *arguments],
            cwd=folder,
            env=clean_environ(environ),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.base_url = self.wait_for(READY)[1]
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> ProxyProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """The `count`-th stderr line that matches; fails when the process ends or says nothing of the kind in a minute."""
        with self._grown:
            self._grown.wait_for(lambda: self._has_ended or len(self._matches(pattern)) >= count, READY_WITHIN_S)
        found = self._matches(pattern)
        assert len(found) >= count, f"never said {pattern!r}:\n" + "\n".join(self.lines)
        return found[count - 1]

    @property
    def worker_pids(self) -> list[int]:
        """Children of the supervisor."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, when it has ended by itself."""
        return self.process.wait(READY_WITHIN_S)

    def kill(self) -> None:
        """End it and its workers at once."""
        pids = [*self.worker_pids, self.process.pid] if self.process.poll() is None else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(READY_WITHIN_S)
        self._reader.join(READY_WITHIN_S)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                self._grown.notify_all()
        with self._grown:
            self._has_ended = True
            self._grown.notify_all()

    def _matches(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in list(self.lines) if (found := re.search(pattern, line))]
