"""Real `hookline` processes, in a folder of their own, ended with the test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'
BARE = "[server]\nport = 0\n[chain]\nplugins = []\n" + DEMO


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
def serve(folder: Path) -> Iterator[Callable[..., ProxyProcess]]:
    """Start `hookline serve` with a proxy.toml of this text (None: without one) and wait until it is ready."""
    proxies: list[ProxyProcess] = []

    def serve(text: str | None = BARE, *arguments: str, **environ: str) -> ProxyProcess:
        proxies.append(ProxyProcess(folder, text, *arguments, environ=environ))
        return proxies[-1]

    yield serve
    for proxy in proxies:
        proxy.kill()
