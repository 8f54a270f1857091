"""Redis, as the stores use it: one connection, short waits, a breaker.

Lives here: `RedisClient`: dialling, outages, scripts the server has forgotten. Elsewhere: the wire (redis_connection.py), the decisions (redis_limits.py), cached
replies (redis_replies.py).
Idea: whether Redis is there is known before anybody asks: while it is away, a task of our own dials, greets and lets the store reconcile what happened meanwhile;
only then is it up. So no call is ever the one that finds out, but for the first after the fall.

| state    | a command                            | leaves it                                                         |
|----------|--------------------------------------|-------------------------------------------------------------------|
| idle     | dials                                | -> dialling                                                       |
| dialling | waits, bounded                       | -> up, or -> down (and all who wait are refused)                  |
| up       | is sent                              | -> dialling, when the connection ends: a timeout, a reset, a server that does not decide any more |
| down     | is refused at once (`Unavailable`)   | -> up, when a try, every RETRY_S, succeeds                        |

Nothing is sent twice but for NOSCRIPT, which says that nothing was done: a decision whose answer got lost may have been made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from hookline.errors import StartupError, Unavailable
from hookline.stores.redis_connection import RedisConnection, ReplyError, ask_all, connect
from hookline.stores.redis_scripts import Script
from hookline.stores.redis_url import read_url

WAITING_MAX = 10_000
"""Commands without an answer; more are refused at once."""
RETRY_S = 0.2
"""How often a Redis that is away is tried."""
RECONCILE_S = 2.0
"""How long the store may take to tell a server what it should know, before it counts as away."""
DOES_NOT_DECIDE = ("READONLY", "MOVED", "ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "MISCONF")
"""Answers of a server that can't be asked now: a replica, one that is starting, a node of a cluster."""

State = Literal["idle", "dialling", "up", "down"]
Tell = Callable[[Any], None]
"""Is given the answer, or the `Unavailable` there is instead."""
log = logging.getLogger("hookline.shared")


class Asked:
    """Who asked: a future, a function, or nobody."""

    __slots__ = ("arguments", "client", "dropped", "future", "script", "tell")

    def __init__(
        self,
        client: RedisClient,
        arguments: tuple[Any, ...],
        script: Script | None,
        future: asyncio.Future[Any] | None,
        tell: Tell | None,
    ) -> None:
        self.client = client
        self.arguments = arguments
        self.script = script
        self.future = future
        self.tell = tell
        self.dropped: Any = None
        """The answer that came between a caller's cancellation and its next turn."""

    def __call__(self, answer: Any) -> None:
        if isinstance(answer, Exception):
            self.client._went_wrong(self, answer)
        elif self.future is not None:
            if self.future.done():
                self.dropped = answer
            else:
                self.future.set_result(answer)
        elif self.tell is not None:
            self.tell(answer)

    def leave(self, tell: Tell) -> None:
        """Whoever waited was cancelled: `tell` is given the answer, now or when it comes."""
        future, self.future = self.future, None
        self.tell = tell
        if self.dropped is not None:
            tell(self.dropped)
        elif future is not None and future.done() and not future.cancelled():
            error = future.exception()
            tell(future.result() if error is None else error)

    def fail(self, error: Unavailable) -> None:
        if self.future is not None:
            if self.future.done():
                self.dropped = error
            else:
                self.future.set_exception(error)
                self.future.exception()  # who has left does not ask
        elif self.tell is not None:
            self.tell(error)


class RedisClient:
    """Commands to one Redis, in the order they are given. Every one that can't be answered raises `Unavailable`. Raises StartupError for a bad URL."""

    def __init__(self, url: str, *, monotonic: Callable[[], float] | None = None) -> None:
        try:
            import hiredis  # noqa: F401 - asked for here, so that a missing one is said at start
        except ImportError:
            raise StartupError(['[state] shared: redis:// needs the extra: pip install "hookline[redis]"']) from None
        self.url = read_url(url)
        self.monotonic = monotonic or time.monotonic
        self.time = time.time
        self.options = self.url.options
        self.on_connect: list[Callable[[RedisConnection], Awaitable[None]]] = []
        """Run in order on every new connection, before anything else is sent on it."""
        self._scripts: dict[str, Script] = {}
        self.on_state: Callable[[bool], None] = lambda is_open: None
        """Told whenever the breaker opens or closes."""
        self._state: State = "idle"
        self._connection: RedisConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._waiting: deque[Asked] = deque()
        self._why = ""
        self._is_closed = False
        self._writes_before = 0
        self.asked = 0
        """Commands whose answer somebody waits for."""

    def load(self, *names: str) -> list[Script]:
        """Scripts that every new connection loads: one the server does not know would be asked twice, and so come after what was asked later."""
        for name in names:
            self._scripts.setdefault(name, Script(name))
        return [self._scripts[name] for name in names]

    def send(self, *arguments: Any) -> asyncio.Future[Any]:
        """Put a command down; it leaves with all others of this turn of the loop."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked += 1
        self._put(Asked(self, arguments, None, future, None))
        return future

    def run(self, script: Script, keys: list[str], *arguments: Any) -> asyncio.Future[Any]:
        """One decision. Every key has the same hash tag."""
        return self.run_packed(script, (len(keys), *keys, *arguments))

    def run_packed(self, script: Script, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The same, for who has the number of keys, the keys and the arguments in one tuple."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked += 1
        self._put(Asked(self, arguments, script, future, None))
        return future

    def ask(self, script: Script, arguments: tuple[Any, ...]) -> Asked:
        """The same, for who must know the answer also when cancelled: await `future`, or leave with `leave`."""
        asked = Asked(self, arguments, script, asyncio.get_running_loop().create_future(), None)
        self.asked += 1
        self._put(asked)
        return asked

    def tell(self, script: Script, arguments: tuple[Any, ...], then: Tell | None = None) -> None:
        """A decision nobody waits for; `then` is given the answer or the error."""
        self._put(Asked(self, arguments, script, None, then))

    @property
    def is_open(self) -> bool:
        """Whether the breaker refuses at once."""
        return self._state == "down"

    @property
    def round_trips(self) -> int:
        """Turns of the loop in which something was sent."""
        return self._writes_before + (self._connection.writes if self._connection is not None else 0)

    async def aclose(self) -> None:
        """Wait for what was asked, then close."""
        if self._state in ("up", "dialling"):
            with suppress(Unavailable):
                await self.send("PING")  # answered last
        self._is_closed = True
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        self._refuse_waiting("closed")
        if self._connection is not None:
            self._connection.end("closed")

    def _put(self, asked: Asked) -> None:
        if self._is_closed:
            raise _unavailable("closed")
        connection = self._connection
        if self._state == "up" and connection is not None:
            if connection.waiting >= WAITING_MAX:
                raise _unavailable(f"{WAITING_MAX} commands wait for it")
            connection.ask(_command(asked), asked)
        elif self._state == "down":
            raise _unavailable(self._why)
        else:
            if len(self._waiting) >= WAITING_MAX:
                raise _unavailable(f"{WAITING_MAX} commands wait for it")
            self._waiting.append(asked)
            if self._state == "idle":
                self._dial()

    def _dial(self) -> None:
        self._state = "dialling"
        self._dialling = asyncio.get_running_loop().create_task(self._keep_dialling())

    async def _keep_dialling(self) -> None:
        """Until it is up."""
        while True:
            lost = asyncio.Event()
            try:
                connection = await connect(self.url, lost.set)
                try:
                    async with asyncio.timeout(RECONCILE_S):
                        await ask_all(connection, [("SCRIPT", "LOAD", s.text) for s in self._scripts.values()])
                        for reconcile in self.on_connect:
                            await reconcile(connection)
                    if lost.is_set():
                        raise ConnectionError("it closed the connection")
                except BaseException:
                    connection.end("it could not be told what it should know")
                    raise
            except (OSError, TimeoutError, ReplyError, Unavailable) as error:
                self._went_down(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            self._came_up(connection)
            return

    def _came_up(self, connection: RedisConnection) -> None:
        if self._state == "down":
            log.info("the shared store (Redis) is back")
        self._state, self._connection = "up", connection
        connection.on_lost = self._lost
        self.on_state(False)
        while self._waiting:
            asked = self._waiting.popleft()
            connection.ask(_command(asked), asked)

    def _went_down(self, why: str) -> None:
        if self._state != "down":
            log.warning("the shared store (Redis) is away: %s", why)
            self._state = "down"
            self.on_state(True)
        self._why = why
        self._refuse_waiting(why)

    def _lost(self) -> None:
        """The connection has ended: dial at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._writes_before += connection.writes
            self._why = connection.problem or ""
        if self._state == "up" and not self._is_closed:
            if self._why.startswith("no answer"):
                self._went_down(self._why)  # slow: who comes now need not find out
            self._dialling = asyncio.get_running_loop().create_task(self._keep_dialling())
            if self._state == "up":
                self._state = "dialling"

    def _refuse_waiting(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(_unavailable(why))

    def _went_wrong(self, asked: Asked, error: Exception) -> None:
        said = str(error)
        connection = self._connection
        if isinstance(error, ReplyError):
            if said.startswith("NOSCRIPT") and asked.script is not None and connection is not None:
                script, asked.script = asked.script, None
                asked.arguments = ("EVAL", script.text, *asked.arguments)
                connection.ask(asked.arguments, asked)
                return
            if said.startswith(DOES_NOT_DECIDE) and connection is not None:
                log.error("the shared store (Redis) does not decide: %s", said)
                asyncio.get_running_loop().call_soon(connection.end, said)
        asked.fail(_unavailable(said))


class Metrics(Protocol):
    """Of hookline.host, which stores do not import."""

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., Any]: ...
    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., Any]: ...


def watch(client: RedisClient, metrics: Metrics, store: str) -> Callable[[], None]:
    """Show a store's breaker; what comes back counts a decision that was made without Redis."""
    is_open = metrics.gauge("hookline_store_open", "1 while a shared store is away and not asked.", ("store",))(store)
    bypassed = metrics.counter("hookline_store_bypassed_total", "Decisions made without a shared store.", ("store",))
    is_open.set(float(client.is_open))
    client.on_state = lambda opened: is_open.set(float(opened))
    child = bypassed(store)
    return lambda: child.inc()


def _command(asked: Asked) -> tuple[Any, ...]:
    script = asked.script
    return asked.arguments if script is None else ("EVALSHA", script.digest, *asked.arguments)


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"the shared store (Redis) does not answer: {why}", retry_after_s=1.0)
