"""Redis, as the stores use it: few connections, short waits, one pipeline per tick of the loop.

Lives here: `RedisClient`: merging, timeouts, the breaker, scripts the server has forgotten. Elsewhere: the decisions (redis_limits.py), cached replies
(redis_replies.py), the wire (redis-py).
Idea: callers put a command down and wait for a future; lanes of our own carry what has piled up, each over a connection of its own. So a caller that is cancelled
never touches a connection, and its answer is read and dropped where it belongs.

Nothing is sent twice but for NOSCRIPT, which says that nothing was done: a decision whose answer got lost may have been made."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from hookline.errors import StartupError, Unavailable
from hookline.stores.redis_scripts import Script

WAITING_MAX = 10_000
"""Commands that wait for a lane; more are refused at once."""
PIPELINE_MAX = 256
FAILURES_TO_OPEN = 3
OPEN_S = 0.5
"""How long an open breaker refuses before one pipeline tries again."""


class RedisOptions(NamedTuple):
    """What the query of the URL may set: `redis://host:6379/0?connections=4&command_timeout_s=0.5`."""

    connections: int = 4
    connect_timeout_s: float = 1.0
    command_timeout_s: float = 1.0
    prefix: str = "hookline"
    l1_ttl_s: float = 1.0


class _Command(NamedTuple):
    arguments: tuple[Any, ...]
    script: Script | None
    answer: asyncio.Future[Any]


def read_options(url: str) -> tuple[str, RedisOptions]:
    """The URL without our own options, and these. Raises StartupError."""
    parts = urlsplit(url)
    ours: dict[str, Any] = {}
    others = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in RedisOptions._fields:
            others.append((name, value))
            continue
        try:
            ours[name] = type(RedisOptions._field_defaults[name])(value)
        except ValueError:
            raise StartupError([f'[state] shared: {name}="{value}" is not a number']) from None
    options = RedisOptions(**ours)
    if min(options.connections, options.connect_timeout_s, options.command_timeout_s) <= 0:
        raise StartupError(["[state] shared: connections and timeouts must be more than 0"])
    return urlunsplit(parts._replace(query=urlencode(others))), options


class RedisClient:
    """Commands to one Redis. Every one that can't be answered raises `Unavailable`."""

    def __init__(self, url: str, *, monotonic: Callable[[], float]) -> None:
        try:
            import redis.asyncio as redis_asyncio
            from redis import exceptions
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.maint_notifications import MaintNotificationsConfig
        except ImportError:
            raise StartupError(['[state] shared: redis:// needs the extra: pip install "hookline[redis]"']) from None
        address, self.options = read_options(url)
        self._errors: tuple[type[BaseException], ...] = (exceptions.RedisError, OSError, TimeoutError)
        self._no_script = exceptions.NoScriptError
        self._said_no = exceptions.ResponseError
        self._moved_on = (exceptions.ReadOnlyError, exceptions.ClusterDownError)
        try:
            self._redis = redis_asyncio.Redis.from_url(
                address,
                max_connections=self.options.connections,
                socket_connect_timeout=self.options.connect_timeout_s,
                socket_timeout=self.options.command_timeout_s,
                retry=Retry(NoBackoff(), 0),
                # With them, redis-py does not look whether a pooled connection has ended meanwhile.
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError as error:
            raise StartupError([f"[state] shared: {error}"]) from error
        self._monotonic = monotonic
        self._waiting: deque[_Command] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._is_flush_due = False
        self._is_closed = False
        self._failures = 0
        self._open_until_s = 0.0
        self.round_trips = 0
        """Pipelines sent."""

    def send(self, *arguments: Any) -> asyncio.Future[Any]:
        """Put a command down; it leaves with all others of this tick."""
        return self._put(arguments, None)

    def run(self, script: Script, keys: list[str], *arguments: Any) -> asyncio.Future[Any]:
        """One decision. Every key has the same hash tag."""
        return self._put(("EVALSHA", script.digest, len(keys), *keys, *arguments), script)

    @property
    def is_open(self) -> bool:
        """Whether the breaker refuses at once."""
        return self._failures >= FAILURES_TO_OPEN and self._monotonic() < self._open_until_s

    async def aclose(self) -> None:
        """Finish what was put down, then close."""
        if not self.is_open:
            while self._waiting or self._lanes:
                self._flush()
                await asyncio.wait(self._lanes)
        self._is_closed = True
        for task in self._lanes:
            task.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._fail(self._waiting, "closed")
        self._waiting.clear()
        await self._redis.aclose()

    def _put(self, arguments: tuple[Any, ...], script: Script | None) -> asyncio.Future[Any]:
        if self._is_closed:
            raise _unavailable("closed")
        if self.is_open:
            raise _unavailable("failed several times, not asked again yet")
        if len(self._waiting) >= WAITING_MAX:
            raise _unavailable(f"{WAITING_MAX} commands wait for it")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Command(arguments, script, answer))
        if not self._is_flush_due:
            self._is_flush_due = True
            loop.call_soon(self._flush)
        return answer

    def _flush(self) -> None:
        """Give what waits to lanes that are free; half-open, to one."""
        self._is_flush_due = False
        lanes_max = 1 if self._failures >= FAILURES_TO_OPEN else self.options.connections
        while self._waiting and len(self._lanes) < lanes_max:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), PIPELINE_MAX))]
            lane = asyncio.get_running_loop().create_task(self._carry(batch))
            self._lanes.add(lane)
            lane.add_done_callback(self._lane_ended)

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if self._waiting and not self._is_closed:
            self._flush()

    async def _carry(self, batch: list[_Command]) -> None:
        """Send, read, hand out. Only this touches the connection, and no caller can cancel it."""
        try:
            forgotten = self._hand_out(batch, await self._ask([command.arguments for command in batch]))
            if forgotten:
                texts = [("EVAL", c.script.text, *c.arguments[2:]) for c in forgotten if c.script is not None]
                self._hand_out(forgotten, await self._ask(texts), may_be_forgotten=False)
        except self._errors as error:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._open_until_s = self._monotonic() + OPEN_S
                self._fail(self._waiting, "failed several times")
                self._waiting.clear()
            self._fail(batch, f"{type(error).__name__}: {error}")
        except BaseException:
            self._fail(batch, "closed")
            raise
        else:
            self._failures = 0

    async def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.round_trips += 1
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        answers: list[Any] = []
        try:
            # Not redis-py's own pipeline: PING cost 137 us of CPU with it and 79 without, 14 and 10 among 64 (bench/redis_limits.py).
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except self._said_no as error:
                    answers.append(error)
        except BaseException:  # what is still to come must not be the next one's answer
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)
        return answers

    def _hand_out(self, batch: list[_Command], answers: list[Any], *, may_be_forgotten: bool = True) -> list[_Command]:
        """Each answer to who asked; returns the commands whose script the server does not know."""
        forgotten = []
        for command, answer in zip(batch, answers, strict=True):
            if may_be_forgotten and isinstance(answer, self._no_script) and command.script is not None:
                forgotten.append(command)
            elif command.answer.done():  # nobody waits any more
                continue
            elif isinstance(answer, self._said_no):
                command.answer.set_exception(_unavailable(str(answer)))
            else:
                command.answer.set_result(answer)
        if any(isinstance(answer, self._moved_on) for answer in answers):
            raise ConnectionError("this server does not decide any more")
        return forgotten

    def _fail(self, commands: deque[_Command] | list[_Command], why: str) -> None:
        for command in commands:
            if not command.answer.done():
                command.answer.set_exception(_unavailable(why))
                command.answer.exception()  # who has left does not ask


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"the shared store (Redis) does not answer: {why}", retry_after_s=1.0)
