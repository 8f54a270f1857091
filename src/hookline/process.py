"""One serving process: event loop, signals, the way out.

Lives here: what SIGTERM, SIGINT, SIGHUP and a successor do. Elsewhere: what serves (app.py), the socket and the ready line (launch.py), several processes
(supervisor.py), the talk with a successor (handover.py).
Idea: the first signal asks, the second insists: SIGTERM or SIGINT stops accepting and lets calls finish, once more cuts them, a third time
ends the process where it stands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from hookline.app import App
from hookline.config import Settings
from hookline.config_loading import load
from hookline.handover import HandoverDesk, may_overlap, socket_path, take_over
from hookline.launch import (
    CUT,
    HURRY,
    READY,
    RETIRE,
    SIBLING_DIED,
    STOP,
    Plan,
    ignore_hangups,
    keep_status,
    open_listener,
    ready_lines,
    remarks,
)
from hookline.reload import stamps_of, watch

log = logging.getLogger("hookline.process")


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

    def is_open_to_others() -> bool:
        keeps_state = any(plugin.needs_shared_state for plugin in app.current.chain.plugins)
        return may_overlap(settings, keeps_state=keeps_state)

    try:
        former = take_over(settings, plan.host, plan.port, overlaps=is_open_to_others()) if plan.takes_over else None
        listener = open_listener(plan.host, plan.port) if former is None else former.listener
    except BaseException:
        app.abandon()
        raise
    if former is not None and not former.overlaps:
        former.wait_for_end()

    def on_ready() -> None:
        if former is not None:
            former.retire()
        for text in remarks(settings):
            log.warning("%s", text)
        print("\n".join(ready_lines(settings, plan.host, port)), file=sys.stderr, flush=True)

    path, port = socket_path(settings), listener.getsockname()[1]
    if path is None:
        return run_loop(_serve(app, plan, listener, on_ready))
    desk: HandoverDesk | None = None

    def open_desk(on_taken: Callable[[], None]) -> HandoverDesk:
        nonlocal desk
        desk = HandoverDesk(path, listener, may_overlap=is_open_to_others, on_taken=on_taken)
        return desk

    with listener:
        while True:
            status = run_loop(_serve(app, plan, listener.dup(), on_ready, open_desk=open_desk))
            ignore_hangups()
            if desk is None or not desk.is_orphaned():
                return status
            settings, former, desk = app.current.settings, None, None
            app = App(settings, host=plan.host)


def serve_supervised(settings: Settings, plan: Plan, listener_fd: int, supervisor_fd: int) -> int:
    """Serve as one of several, on the supervisor's socket; say so when ready, and stop when the supervisor has died."""
    app = App(settings, host=plan.host, workers=plan.workers)
    listener = socket.socket(fileno=listener_fd)
    listener.setblocking(False)
    supervisor = socket.socket(fileno=supervisor_fd)
    return run_loop(_serve(app, plan, listener, lambda: supervisor.sendall(READY), supervisor=supervisor))


async def _serve(
    app: App,
    plan: Plan,
    listener: socket.socket,
    on_ready: Callable[[], None],
    *,
    supervisor: socket.socket | None = None,
    open_desk: Callable[[Callable[[], None]], HandoverDesk] | None = None,
) -> int:
    """Serve until a signal or a successor says stop."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals_seen = 0
    is_replaced = False
    desk: HandoverDesk | None = None

    def on_replaced() -> None:
        nonlocal is_replaced
        is_replaced = not stopping.is_set()
        stopping.set()

    def stop() -> None:
        if desk is not None:
            desk.disown()
        app.close_idle()
        stopping.set()

    def on_signal() -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1:
            stop()
        elif signals_seen == 2:
            app.hurry()
        else:
            os._exit(CUT)

    def on_told(told: bytes) -> None:
        if SIBLING_DIED in told:
            app.adopt()
        if RETIRE in told:
            on_replaced()
        if STOP in told or HURRY in told:
            stop()
        if HURRY in told:
            app.hurry()

    async def reload() -> None:
        await app.reload(partial(load, plan.config))

    tasks: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    # Looked at before the ready line: who reads that and then changes a file has changed it.
    since = stamps_of(app.watched_files()) if plan.watches_files else {}
    await app.start(listener)
    if supervisor is not None:
        loop.add_reader(supervisor, _on_supervisor, loop, supervisor, on_told, stop)
    elif hasattr(signal, "SIGUSR2"):
        loop.add_signal_handler(signal.SIGUSR2, _refuse_rolling)
    desk = open_desk(on_replaced) if open_desk is not None else None
    if plan.watches_files:
        tasks.add(loop.create_task(watch(app.watched_files, reload, since=since)))
    _settle_heap()
    on_ready()
    await stopping.wait()
    for task in tasks:
        task.cancel()
    if desk is not None:
        desk.close()
    drain_s = app.current.settings.server.drain_s
    log.info("stopping: running calls may go on for %g s; a second signal cuts them", drain_s)
    is_drained = await app.stop(drain_s, is_replaced=is_replaced)
    log.info("stopped" if is_drained else "stopped; calls that still ran were cut")
    status = 0 if is_drained else CUT
    keep_status(status)
    return status


GC_OBJECTS = 20_000
"""About 2 MiB of garbage at most, if all of it were cycles."""


def _settle_heap() -> None:
    """Take what exists now out of the garbage collector's rounds: a full one stops the loop for 20-60 ms with it, 0.2 µs without (53,000 objects).

    The price: cycles of this first configuration stay after a reload. It happens once. And make rounds rare: a call leaves no cycles behind, so they find
    nothing, and with calls in flight by the dozen the default of 700 objects comes round every few calls (7 % of the CPU, bench/full.toml)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 50)


def _refuse_rolling() -> None:
    log.warning(
        "SIGUSR2 replaces the workers of `serve --workers N`, and this server is one process: "
        "start its successor with `serve --takeover` ([server] handover_socket)"
    )


def _on_supervisor(
    loop: asyncio.AbstractEventLoop,
    supervisor: socket.socket,
    on_told: Callable[[bytes], None],
    stop: Callable[[], None],
) -> None:
    """What the supervisor tells; else what can be read is the end of its half."""
    with contextlib.suppress(OSError):
        if told := supervisor.recv(64):
            on_told(told)
            return
    loop.remove_reader(supervisor)
    log.error("the supervisor has died; this worker stops")
    stop()
