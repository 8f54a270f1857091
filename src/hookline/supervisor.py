"""The supervisor: several serving processes on one socket.

Lives here: starting workers, replacing dead ones, forwarding signals. Elsewhere: what a worker does (process.py).
Idea: the socket is bound once, here, and inherited by every worker, so that a worker that ends takes no queued connection with it (closing one of two
SO_REUSEPORT listeners reset 45 of 100 in a trial, a shared socket none). A socket pair per worker says "ready" upwards, and its end says "the
supervisor has died" downwards.

| event                  | what happens                                                             |
|------------------------|--------------------------------------------------------------------------|
| the first worker fails | before it was ready: all end, status 2; its own words say why            |
| a worker dies later    | replaced, after a pause that doubles while they die young                |
| SIGTERM, SIGINT        | forwarded: workers stop accepting and drain                              |
| a second one           | forwarded: workers cut their calls; who is left after 5 s is killed      |
| SIGHUP                 | forwarded: workers reload                                                |"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress

from hookline.config import Settings
from hookline.launch import CUT, READY, Plan, open_listener, ready_lines

log = logging.getLogger("hookline.supervisor")

USAGE = 2
READY_WITHIN_S = 60.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 10.0
OLD_ENOUGH_S = 10.0
"""A worker that lived this long did not die of its start."""
KILL_AFTER_S = 5.0


def supervise(settings: Settings, plan: Plan) -> int:
    """Run `plan.workers` workers until a signal says stop. Answers the exit status. Raises StartupError."""
    listener = open_listener(plan.host, plan.port)
    with listener:
        return asyncio.run(_Supervisor(settings, plan, listener).run())


class _Supervisor:
    def __init__(self, settings: Settings, plan: Plan, listener: socket.socket) -> None:
        self._settings = settings
        self._plan = plan
        self._listener = listener
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._stops_seen = 0
        self._stopping = asyncio.Event()
        self._was_cut = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        # One first: what is wrong with the configuration is then said once.
        first = await self._start_worker()
        if first is None:
            return 0 if self._stopping.is_set() else USAGE
        keepers = [loop.create_task(self._keep(first))]
        others = [loop.create_task(self._start_worker()) for _ in range(1, self._plan.workers)]
        for started in others:
            keepers.append(loop.create_task(self._keep(await started)))
        if not self._stopping.is_set():
            port = self._listener.getsockname()[1]
            lines = ready_lines(self._settings, self._plan.host, port, workers=self._plan.workers)
            print("\n".join(lines), file=sys.stderr, flush=True)
        await self._stopping.wait()
        await self._end(keepers)
        return CUT if self._was_cut else 0

    async def _start_worker(self) -> asyncio.subprocess.Process | None:
        """A worker that accepts; None if it ended before it did."""
        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        try:
            # A process group of its own: Ctrl-C at a terminal reaches it once, through us.
            process = await asyncio.create_subprocess_exec(
                *self._command(*fds), pass_fds=fds, process_group=0, stdin=asyncio.subprocess.DEVNULL
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._workers[process.pid] = process
        lifeline = asyncio.create_task(self._hold_lifeline(process, ours))
        if self._stopping.is_set():
            self._send_to(process, signal.SIGTERM)
        is_ready = await self._is_ready(ours)
        if is_ready:
            return process
        if process.returncode is None:
            self._send_to(process, signal.SIGKILL)
        await lifeline
        return None

    def _command(self, listener_fd: int, supervisor_fd: int) -> list[str]:
        plan = self._plan
        command = [sys.executable, "-m", "hookline", "worker", f"--listener-fd={listener_fd}"]
        command += [f"--supervisor-fd={supervisor_fd}", f"--host={plan.host}", f"--workers={plan.workers}"]
        if plan.config is not None:
            command.append(f"--config={plan.config}")
        if plan.watches_files:
            command.append("--reload")
        return command

    async def _hold_lifeline(self, process: asyncio.subprocess.Process, ours: socket.socket) -> None:
        """Keep our end of the pair open while the worker lives."""
        try:
            await process.wait()
        finally:
            self._workers.pop(process.pid, None)
            ours.close()

    async def _is_ready(self, ours: socket.socket) -> bool:
        ours.setblocking(False)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(READY_WITHIN_S):
                return await asyncio.get_running_loop().sock_recv(ours, len(READY)) == READY
        return False

    async def _keep(self, process: asyncio.subprocess.Process | None) -> None:
        """Replace one worker, and its successors, whenever they die."""
        loop = asyncio.get_running_loop()
        pause_s = PAUSE_FIRST_S
        while not self._stopping.is_set():
            started_at = loop.time()
            status: int | str = "before it was ready"
            if process is not None:
                status = await process.wait()
            if self._stopping.is_set():
                return
            pause_s = PAUSE_FIRST_S if loop.time() - started_at > OLD_ENOUGH_S else min(pause_s * 2, PAUSE_MAX_S)
            pid = process.pid if process is not None else "?"
            log.error("worker %s has died (%s); another one starts in %g s", pid, status, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                return
            process = await self._start_worker()

    def _on_stop(self) -> None:
        self._stops_seen += 1
        self._stopping.set()
        # Our copy of the socket would go on queueing connections that nobody accepts.
        self._listener.close()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for process in list(self._workers.values()):
            self._send_to(process, number)

    def _send_to(self, process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + self._settings.server.drain_s + 2 * KILL_AFTER_S
        insisted = False
        while self._workers:
            if self._stops_seen > 1 and not insisted:
                insisted, kill_at = True, min(kill_at, loop.time() + KILL_AFTER_S)
            if loop.time() > kill_at:
                log.error("killing %d workers that did not end", len(self._workers))
                self._send(signal.SIGKILL)
                kill_at = float("inf")
            waits = [loop.create_task(process.wait()) for process in self._workers.values()]
            await asyncio.wait(waits, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            self._was_cut = self._was_cut or any(task.done() and task.result() != 0 for task in waits)
            for task in waits:
                task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
