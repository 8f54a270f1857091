"""One serving process: event loop, signals, logging set-up, the way out.

Lives here: what SIGTERM, SIGINT and SIGHUP do, opening the socket. Elsewhere: what serves (app.py), several processes (supervisor.py).
Idea: the first signal asks, the second insists: SIGTERM or SIGINT stops accepting and lets calls finish, once more cuts them, a third time
ends the process where it stands."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hookline.app import BACKLOG, App
from hookline.assembly import unset_variables
from hookline.cli_reports import ready_lines
from hookline.config import Settings
from hookline.config_loading import load
from hookline.errors import StartupError
from hookline.reload import watch

log = logging.getLogger("hookline.process")

READY = b"ready\n"
"""What a worker tells the supervisor."""
CUT = 1
"""Exit status when calls had to be cut."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line makes of `[server]`, and where the configuration is read again on a reload."""

    config: Path | None
    host: str
    port: int
    workers: int = 1
    watches_files: bool = False


def set_up_logging() -> None:
    """Plain lines on stderr; calls are logged by the `logging` plugin, not here."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hookline").setLevel(logging.INFO)


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket that listens already, so that nobody is refused while workers start. Raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    except socket.gaierror:
        try:
            address = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
        except socket.gaierror as error:
            raise StartupError([f"can't listen on {host}: {error.strerror}"]) from error
    listener = socket.socket(address[0], address[1])
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = "; is another server running? `--port 0` takes a free one" if error.errno == 98 else ""
        raise StartupError([f"can't listen on {host}:{port}: {error.strerror}{hint}"]) from error
    listener.setblocking(False)
    return listener


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def serve_alone(settings: Settings, plan: Plan) -> int:
    """Serve in this process, the only one. Answers the exit status. Raises StartupError."""
    app = App(settings, host=plan.host)
    listener = open_listener(plan.host, plan.port)

    def on_ready() -> None:
        for text in unset_variables(settings):
            log.warning("%s", text)
        print("\n".join(ready_lines(settings, plan.host, listener.getsockname()[1])), file=sys.stderr, flush=True)

    return run_loop(_serve(app, plan, listener, on_ready))


def serve_supervised(settings: Settings, plan: Plan, listener_fd: int, supervisor_fd: int) -> int:
    """Serve as one of several, on the supervisor's socket; say so when ready, and stop when the supervisor has died."""
    app = App(settings, host=plan.host, workers=plan.workers)
    listener = socket.socket(fileno=listener_fd)
    listener.setblocking(False)
    supervisor = socket.socket(fileno=supervisor_fd)
    return run_loop(_serve(app, plan, listener, lambda: supervisor.sendall(READY), supervisor))


async def _serve(
    app: App, plan: Plan, listener: socket.socket, on_ready: Callable[[], None], supervisor: socket.socket | None = None
) -> int:
    """Serve until a signal says stop."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals_seen = 0

    def on_stop() -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1:
            stopping.set()
        elif signals_seen == 2:
            app.hurry()
        else:
            os._exit(CUT)

    async def reload() -> None:
        await app.reload(partial(load, plan.config))

    tasks: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    await app.start(listener)
    if supervisor is not None:
        loop.add_reader(supervisor, _on_supervisor_gone, loop, supervisor, on_stop)
    if plan.watches_files:
        tasks.add(loop.create_task(watch(app.watched_files, reload)))
    on_ready()
    await stopping.wait()
    for task in tasks:
        task.cancel()
    drain_s = app.current.settings.server.drain_s
    log.info("stopping: running calls may go on for %g s; a second signal cuts them", drain_s)
    is_drained = await app.stop(drain_s)
    log.info("stopped" if is_drained else "stopped; calls that still ran were cut")
    return 0 if is_drained else CUT


def _on_supervisor_gone(
    loop: asyncio.AbstractEventLoop, supervisor: socket.socket, on_stop: Callable[[], None]
) -> None:
    """The supervisor never writes: what can be read is the end of its half."""
    loop.remove_reader(supervisor)
    log.error("the supervisor has died; this worker stops")
    on_stop()
