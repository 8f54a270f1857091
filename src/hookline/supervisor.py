"""The supervisor: several serving processes on one socket.

Lives here: starting workers, replacing dead ones and, by a rolling restart, living ones; telling them to stop. Elsewhere: what a worker does (process.py), what both know (launch.py).
Idea: the socket is bound once, here, and inherited by every worker, so that a worker that ends takes no queued connection with it (closing one of two
SO_REUSEPORT listeners reset 45 of 100 in a trial, a shared socket none). A socket pair per worker says "ready" upwards; downwards it says that another
worker has died, that a successor serves, or to stop (launch.py has the words), and its end that the supervisor has died.

| event                  | what happens                                                             |
|------------------------|--------------------------------------------------------------------------|
| the first worker fails | before it was ready: all end, status 2; its own words say why            |
| a worker dies later    | the others are told, and charge its calls in flight (its journal);       |
|                        | replaced, after a pause that doubles while they die young                |
| SIGTERM, SIGINT        | told: workers stop accepting and drain                                   |
| a second one           | told: workers cut their calls; who is left after 5 s is killed           |
| SIGHUP                 | forwarded: workers reload                                                |
| SIGUSR2                | rolling restart: one by one a new worker starts, then a former one drains |
| a successor takes over | (handover.py) all workers drain, then the supervisor ends; or serves      |
|                        | again, if the successor died before it served                            |"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress

from hookline.config import Settings
from hookline.config_loading import load
from hookline.errors import StartupError
from hookline.handover import HandoverDesk, Predecessor, socket_path, take_over
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

log = logging.getLogger("hookline.supervisor")

USAGE = 2
READY_WITHIN_S = 60.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 10.0
OLD_ENOUGH_S = 10.0
"""A worker that lived this long did not die of its start."""
KILL_AFTER_S = 5.0
LOOK_EVERY_S = 0.1
NOTHING_CUT = (0, -signal.SIGTERM)
"""Exit statuses. Once its loop has ended, with its last call, a worker dies of a signal like any process: one that was being replaced and is told to stop just then."""
NEVER = float("inf")


def supervise(settings: Settings, plan: Plan) -> int:
    """Run `plan.workers` workers until a signal says stop. Answers the exit status. Raises StartupError.

    Another server may always run beside several workers: they start only where they share their state, or keep none."""
    former = take_over(settings, plan.host, plan.port, overlaps=True) if plan.takes_over else None
    listener = open_listener(plan.host, plan.port) if former is None else former.listener
    with listener:
        if former is not None and not former.overlaps:
            former.wait_for_end()
        supervisor = _Supervisor(settings, plan, listener, former)
        status = asyncio.run(supervisor.run())
        ignore_hangups()
        while supervisor.desk is not None and supervisor.desk.is_orphaned():
            supervisor = _Supervisor(settings, plan, listener)
            status = asyncio.run(supervisor.run(insists=True))
            ignore_hangups()
        return status


class _Worker:
    """One serving process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, pair: socket.socket, hangups_seen: int) -> None:
        self.process = process
        self.is_ready = False
        self.is_replaced = False
        """A successor serves, or is about to; nobody else shall take its place."""
        self.hangups_seen = hangups_seen
        """SIGHUPs before it started or last reloaded: it has read the configuration since."""
        self._pair = pair
        pair.setblocking(False)
        self.end = asyncio.get_running_loop().create_task(self._wait())

    async def becomes_ready(self) -> bool:
        """Wait until it accepts. False if it ended before, or took too long and was killed."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(READY_WITHIN_S):
                self.is_ready = await asyncio.get_running_loop().sock_recv(self._pair, len(READY)) == READY
        if not self.is_ready:
            self.send(signal.SIGKILL)
            await self.end
        return self.is_ready

    def send(self, number: signal.Signals) -> None:
        if not self.end.done():
            # Not `process.send_signal`: that looks whether the child has ended, and takes its exit status from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def tell(self, what: bytes) -> None:
        """One of what the supervisor tells a worker."""
        with suppress(OSError):
            self._pair.send(what)

    def stop(self, what: bytes) -> None:
        """STOP or HURRY. One that is not ready does not listen yet, and has no calls."""
        if self.is_ready:
            self.tell(what)
        else:
            self.send(signal.SIGTERM)

    async def retire(self, within_s: float) -> None:
        """Have it let its calls finish and end; killed if it does not."""
        self.tell(RETIRE)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.shield(self.end)
        if not self.end.done():
            log.error("killing worker %d that did not end", self.process.pid)
            self.send(signal.SIGKILL)

    async def _wait(self) -> int:
        """Its exit status. Our end of the pair stays open until then: the worker would stop without it."""
        try:
            return await self.process.wait()
        finally:
            self._pair.close()


class _Supervisor:
    def __init__(
        self, settings: Settings, plan: Plan, listener: socket.socket, former: Predecessor | None = None
    ) -> None:
        self._settings = settings
        self._former = former
        self._plan = plan
        self._listener = listener
        self._workers: set[_Worker] = set()
        self._hangups = 0
        self._stops = 0
        self._stopping = asyncio.Event()
        self._keepers: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._rolling: asyncio.Task[None] | None = None
        self.desk: HandoverDesk | None = None

    async def run(self, *, insists: bool = False) -> int:
        """`insists`: what is wrong with the configuration may have been found by a successor; until it is put right connections wait."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR2, self._on_roll)
        # One first: what is wrong with the configuration is then said once.
        first = await self._start_worker()
        while first is None and insists and not self._stopping.is_set():
            log.error("no worker got ready, and nobody else serves; trying again in %g s", PAUSE_MAX_S)
            await self._pause(PAUSE_MAX_S)
            first = await self._start_worker()
        if first is None:
            return 0 if self._stopping.is_set() else USAGE
        others = await asyncio.gather(*(self._start_worker() for _ in range(1, self._plan.workers)))
        for worker in (first, *others):
            self._start_keeping(worker)
        self.desk = self._open_desk()
        if not self._stopping.is_set():
            if self._former is not None:
                self._former.retire()
            for text in remarks(self._settings):
                log.warning("%s", text)
            port = self._listener.getsockname()[1]
            lines = ready_lines(self._settings, self._plan.host, port, workers=self._plan.workers)
            print("\n".join(lines), file=sys.stderr, flush=True)
        await self._stopping.wait()
        if self.desk is not None:
            self.desk.close()
        was_cut = await self._end()
        await asyncio.gather(*self._keepers, *self._retiring, return_exceptions=True)
        status = CUT if was_cut else 0
        keep_status(status)
        return status

    def _open_desk(self) -> HandoverDesk | None:
        path = socket_path(self._settings)
        if path is None or self._stopping.is_set():
            return None
        return HandoverDesk(path, self._listener, may_overlap=lambda: True, on_taken=self._on_replaced)

    def _start_keeping(self, worker: _Worker | None) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(worker))
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)

    def _retire(self, worker: _Worker) -> None:
        within_s = self._find_drain_s() + 2 * KILL_AFTER_S
        task = asyncio.get_running_loop().create_task(worker.retire(within_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _find_drain_s(self) -> float:
        """How long a worker may take to drain: as it was told at its start, or at a reload since."""
        drain_s = self._settings.server.drain_s
        try:
            return max(drain_s, load(self._plan.config).server.drain_s)
        except StartupError:
            return drain_s

    async def _start_worker(self) -> _Worker | None:
        """A worker that accepts; None if it ended before it did, or there shall be no more of them."""
        if self._stopping.is_set():
            return None
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
        worker = _Worker(process, ours, self._hangups)
        self._workers.add(worker)
        worker.end.add_done_callback(lambda _: self._workers.discard(worker))
        if self._stopping.is_set():
            worker.stop(STOP)
        if not await worker.becomes_ready():
            return None
        self._hang_up(worker)
        return worker

    def _command(self, listener_fd: int, supervisor_fd: int) -> list[str]:
        plan = self._plan
        command = [sys.executable, "-m", "hookline", "worker", f"--listener-fd={listener_fd}"]
        command += [f"--supervisor-fd={supervisor_fd}", f"--host={plan.host}", f"--workers={plan.workers}"]
        if plan.config is not None:
            command.append(f"--config={plan.config}")
        if plan.watches_files:
            command.append("--reload")
        return command

    async def _keep(self, worker: _Worker | None) -> None:
        """Replace a worker, and its successors, whenever they die."""
        loop = asyncio.get_running_loop()
        pause_s = PAUSE_FIRST_S / 2
        while True:
            started_at = loop.time()
            how = "before it was ready"
            if worker is not None:
                status = await worker.end
                how = f"{worker.process.pid} with status {status}"
            if self._stopping.is_set():
                return
            is_old = loop.time() - started_at > OLD_ENOUGH_S
            for other in self._workers:
                other.tell(SIBLING_DIED)
            if worker is not None and worker.is_replaced:
                return
            pause_s = PAUSE_FIRST_S if is_old else min(pause_s * 2, PAUSE_MAX_S)
            log.error("a worker has died (%s); another one starts in %g s", how, pause_s)
            await self._pause(pause_s)
            worker = await self._start_worker()

    async def _pause(self, pause_s: float) -> None:
        """Until then, or until there shall be no more workers."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()

    def _on_stop(self) -> None:
        self._stops += 1
        self._stopping.set()
        # Our copy of the socket would go on queueing connections that nobody accepts.
        self._listener.close()
        if self.desk is not None:
            self.desk.disown()
        for worker in self._workers:
            worker.stop(STOP if self._stops == 1 else HURRY)

    def _on_replaced(self) -> None:
        """The successor of this whole server accepts on the socket, or will."""
        self._stopping.set()
        for worker in self._workers:
            worker.tell(RETIRE)

    def _on_roll(self) -> None:
        if self._rolling is not None and not self._rolling.done():
            log.warning("a rolling restart is under way already; ask again when it is done")
        elif not self._stopping.is_set():
            self._rolling = asyncio.get_running_loop().create_task(self._roll())

    async def _roll(self) -> None:
        """Replace each worker. Stops at the first successor that does not get ready; the workers that are left serve on."""
        former = [worker for worker in self._workers if worker.is_ready and not worker.is_replaced]
        log.info("rolling restart of %d workers", len(former))
        for worker in former:
            if worker.end.done():  # it died meanwhile, and its keeper has seen to a new one
                continue
            worker.is_replaced = True
            successor = await self._start_worker()
            if self._stopping.is_set():
                return
            if successor is None:
                worker.is_replaced = False
                self._hang_up(worker)
                if worker.end.done():
                    self._start_keeping(None)
                log.error("rolling restart: a new worker did not get ready; the former ones serve on")
                return
            self._start_keeping(successor)
            self._retire(worker)
        log.info("rolling restart: %d new workers serve, the former ones finish their calls", len(former))

    def _on_hangup(self) -> None:
        self._hangups += 1
        for worker in self._workers:
            if worker.is_ready and not worker.is_replaced:  # one that is not ready would die of it; it is told later
                self._hang_up(worker)

    def _hang_up(self, worker: _Worker) -> None:
        """Have it reload, if it has not read the configuration since the last SIGHUP."""
        if worker.hangups_seen != self._hangups:
            worker.hangups_seen = self._hangups
            worker.send(signal.SIGHUP)

    async def _end(self) -> bool:
        """Wait for the workers, kill those that take too long. True if calls were cut."""
        loop = asyncio.get_running_loop()
        serving = [worker for worker in self._workers if worker.is_ready]
        kill_at = loop.time() + self._find_drain_s() + 2 * KILL_AFTER_S
        has_insisted = False
        while self._workers:
            if self._stops > 1 and not has_insisted:
                has_insisted, kill_at = True, loop.time() + KILL_AFTER_S
            if loop.time() > kill_at:
                log.error("killing %d workers that did not end", len(self._workers))
                for worker in self._workers:
                    worker.send(signal.SIGKILL)
                kill_at = NEVER
            await asyncio.wait({worker.end for worker in self._workers}, timeout=LOOK_EVERY_S)
        return any(worker.end.result() not in NOTHING_CUT for worker in serving)
