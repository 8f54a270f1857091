"""Launching: what one process and several have in common.

Lives here: the plan made of the command line, the listening socket, logging set-up, the ready line. Elsewhere: one process (process.py), several (supervisor.py).
Idea: light, so that a supervisor is a small process that starts quickly."""

from __future__ import annotations

import asyncio
import atexit
import errno
import importlib.metadata
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hookline.config import Settings
from hookline.errors import StartupError

READY = b"ready\n"
"""What a worker tells the supervisor."""
CUT = 1
"""Exit status when calls had to be cut."""
SIBLING_DIED, RETIRE, STOP, HURRY = b"d", b"r", b"s", b"h"
"""What the supervisor tells a worker: charge what another one left behind; let calls finish and end, for a successor serves; the same, for nobody does; cut them.
Stops are told, not forwarded as signals: a service manager that signals all processes of a service would else have asked each worker twice, which means to cut its calls."""
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line makes of `[server]`, and where the configuration is read again on a reload."""

    config: Path | None
    host: str
    port: int
    workers: int = 1
    watches_files: bool = False
    takes_over: bool = False
    """Get the socket from the server that runs already."""


def ignore_hangups() -> None:
    """Until somebody listens for SIGHUP, it must not end a process that is starting."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def keep_status(status: int) -> None:
    """All calls have ended, and only a successor or the interpreter's own end is waited for: a signal now (Ctrl-C reaches every process of a terminal) ends us with `status`, not with its own."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, lambda *_: os._exit(status))
        atexit.register(signal.signal, number, signal.SIG_IGN)  # the interpreter takes our handler away before it ends


def set_up_logging() -> None:
    """Plain lines on stderr; calls are logged by the `logging` plugin, not here."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hookline").setLevel(logging.INFO)


def find_address(host: str, port: int) -> tuple[int, Any]:
    """Where a listener for `host` is bound: its family, and what `bind` takes. Raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    except socket.gaierror:
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
        except socket.gaierror as error:
            raise StartupError([f"can't listen on {host}: {error.strerror}"]) from error
    return found[0], found[4]


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket that listens already, so that nobody is refused while workers start. Raises StartupError."""
    family, address = find_address(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = "; is another server running? `--port 0` takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise StartupError([f"can't listen on {host}:{port}: {error.strerror}{hint}"]) from error
    listener.setblocking(False)
    return listener


def ready_lines(settings: Settings, host: str, port: int, *, workers: int = 1) -> list[str]:
    """Where it serves, what, and a line to try."""
    base = url_of(host, port)
    source = "the embedded default (there is no ./proxy.toml)" if settings.is_embedded_default else settings.source.file
    names = [entry.name for entry in settings.chain.plugins]
    processes = f", {workers} processes" if workers > 1 else ""
    body = json.dumps({"model": _model_to_try(settings), "messages": [{"role": "user", "content": "Hello!"}]})
    key = ' -H "authorization: Bearer $KEY"' if settings.plugins.get("auth", {}).get("keys") and "auth" in names else ""
    return [
        f"hookline {importlib.metadata.version('hookline')} serves {base}/v1 from {source}"
        f" ({counted(len(names), 'plugin')}, {counted(len(settings.providers), 'provider')}{processes})",
        f"try: curl {base}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'",
    ]


def remarks(settings: Settings) -> Iterator[str]:
    """What is no problem, but perhaps not what was meant: an upstream key whose variable is not set matters once that provider is used; options of a plugin
    that is not active are not even read, and with them keys, budgets and limits."""
    for path, variable in settings.source.missing_by_path.items():
        yield settings.source.problem(path, f"environment variable {variable} is not set; calls that need it will fail")
    active = {entry.name for entry in settings.chain.plugins}
    places: list[tuple[str, ...]] = [("plugins", name) for name in settings.plugins]
    places += [("models", model, "plugins", name) for model, table in settings.models.items() for name in table.plugins]
    for place in places:
        if place[-1] not in active:
            yield settings.source.problem(place, f'has no effect: "{place[-1]}" is not in [chain] plugins')


def url_of(host: str, port: int) -> str:
    """The address clients use."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _model_to_try(settings: Settings) -> str:
    for name, table in settings.providers.items():
        if table.kind == "demo":
            return f"{name}/echo"
    return next(iter(settings.models), "gpt-4o-mini")


def counted(number: int, one: str, many: str = "") -> str:
    """`3 plugins`, `1 plugin`."""
    return f"{number} {one if number == 1 else many or one + 's'}"
