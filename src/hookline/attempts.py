"""The attempt loop: from targets to the first byte of a reply.

Lives here: opening, sending, hedging and ending attempts; the peek at a stream's first event; what the client is told when no target is left.
Elsewhere: what may be tried again (builtins/fallback.py says it by `after_failure`), the rest of the body (relay.py).
Idea: the loop runs over a set of live attempts. Usually it is one, which then runs in the call's own task; a hedge makes tasks of them."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from hookline.attempt import Attempt, Outcome, Provider, Result
from hookline.call import Call
from hookline.chain import Chain
from hookline.deployment import Target
from hookline.errors import (
    UPSTREAM_KINDS,
    ApiError,
    BadRequest,
    InsufficientQuota,
    RateLimited,
    Skip,
    Unavailable,
    UpstreamError,
)
from hookline.host import Clock
from hookline.openai_wire import error_in, usage_of
from hookline.reply import Reply, Source
from hookline.settling import Settlement, Steps
from hookline.steps import Continue, Fallback, Retry, Step

log = logging.getLogger("hookline.attempts")

PEEK_BYTES = 64 * 1024
PEEK_S = 0.05
ATTEMPTS_MAX = 32
"""A bound for plugins that would retry for ever; nobody who waits wants the 33rd."""


@dataclass(slots=True)
class PeekedBody:
    """A stream whose beginning was read: the chunks so far, a read in flight if there is one, and the rest."""

    head: list[bytes]
    pending: asyncio.Future[bytes | None] | None
    rest: AsyncIterator[bytes]


class AttemptLoop:
    """The attempts of one call. `results` has the end of each, in order of ending."""

    __slots__ = (
        "_bodies",
        "_chain",
        "_clock",
        "_live",
        "_providers",
        "_settlement",
        "_skips",
        "_waiting",
        "call",
        "results",
    )

    def __init__(
        self, call: Call, *, chain: Chain, providers: Mapping[str, Provider], clock: Clock, settlement: Settlement
    ) -> None:
        self.call = call
        self._chain = chain
        self._providers = providers
        self._clock = clock
        self._settlement = settlement
        self._live: list[Attempt] = []
        self._bodies: list[AsyncIterator[bytes]] = []
        self._waiting: deque[Target] = deque()
        self._skips: list[tuple[Target, Skip]] = []
        self.results: list[Result] = []

    async def first_reply(self, targets: Sequence[Target]) -> tuple[Attempt, Reply]:
        """Try until a reply has begun. Raises the last error, or what `no_target_error` makes of the skips."""
        self._waiting.extend(targets)
        error: ApiError | None = None
        while self._waiting and len(self.call.attempts) < ATTEMPTS_MAX:
            target = self._waiting.popleft()
            attempt = await self._open(target)
            if attempt is None:
                continue
            attempt, reply = await self._race(attempt)
            if reply is not None:
                return attempt, reply
            if not isinstance(attempt.error, UpstreamError):  # the provider can't say this: a skip found out late
                told = attempt.error or BadRequest("not sent")
                self._skips.append((attempt.target, Skip(told.message, told)))
                continue
            error = attempt.error
            upload = self.call.upload
            if upload is not None and not upload.is_replayable:
                break
            step = await self._after_failure(attempt)
            if isinstance(step, Retry):
                if step.delay_s > 0:
                    await self.call.sleep(step.delay_s)
                self._waiting.appendleft(attempt.target)
            elif not isinstance(step, Fallback):
                break
        raise error or no_target_error(self._skips)

    async def go_on(self, failed: Attempt, *, may_continue: bool) -> tuple[Attempt, AsyncIterator[bytes]] | None:
        """After bytes have left: the next target's stream if a plugin answers `Continue`, else None."""
        step = await self._after_failure(failed)
        if not isinstance(step, Continue) or not may_continue:
            return None
        call, original = copy.copy(self.call), self.call
        payload = {**(original.payload or {}), "messages": list(step.messages)}
        call.set_json(orjson.dumps(payload), payload)
        while self._waiting:
            attempt = await self._open(self._waiting.popleft())
            if attempt is None:
                continue
            reply = await self._send(call, attempt)
            if reply is not None and not isinstance(reply.body, bytes) and reply.is_event_stream:
                return attempt, reply.body
            await self.end(attempt, "upstream_error")
        return None

    async def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """End an attempt once: `attempt_ended`, then its tickets, last taken first."""
        if attempt not in self._live:
            return
        self._live.remove(attempt)
        attempt.ended_at = self._clock.monotonic()
        result = _result(attempt, outcome)
        self.results.append(result)
        await self._settlement.run(self._end_steps(attempt, result))

    async def end_all(self, outcome: Outcome) -> None:
        """End what is still alive: the call was cancelled, refused after its first byte, or cut."""
        for attempt in list(self._live):
            await self.end(attempt, outcome)
        for body in self._bodies:  # one that nobody began to read is closed by nobody else
            await close_body(body)

    def result(
        self, outcome: Outcome, *, source: Source, status: int | None, error: ApiError | None, ended_at: float
    ) -> Result:
        """The end of the call: the usage of the attempt that answered, or of the last one; the cost of all."""
        attempt: Attempt | None = next((a for a in reversed(self.call.attempts) if not a.is_loser), None)
        costs = [end.cost_nanousd for end in self.results]
        return Result(
            outcome,
            source=source,
            attempt=attempt,
            status=status,
            usage=attempt.usage if attempt is not None else None,
            cost_nanousd=None if None in costs else sum(cost for cost in costs if cost is not None),
            is_estimated=any(end.is_estimated for end in self.results),
            error=error or (attempt.error if attempt is not None and outcome != "ok" else None),
            ended_at=ended_at,
            first_byte_at=attempt.first_byte_at if attempt is not None else None,
        )

    def _end_steps(self, attempt: Attempt, result: Result) -> Steps:
        for impl in self._chain.attempt_ended:
            pending = impl.run(self.call, attempt)
            if impl.is_async:
                yield pending
        yield from self._settlement.settle(attempt.tickets, result)

    async def _open(self, target: Target) -> Attempt | None:
        """Ask `admit_attempt`; None if the target was skipped (what was taken for it is given back)."""
        call = self.call
        attempt = Attempt(target, len(call.attempts) + 1, self._clock.monotonic())
        provider = self._providers[target.deployment.provider]
        self._live.append(attempt)
        try:
            if call.endpoint not in provider.endpoints:
                raise Skip(f"has no {call.endpoint} endpoint", _unsupported(call, target))
            for impl in self._chain.admit_attempt:
                ticket = impl.run(call, target, attempt)
                if impl.is_async:
                    ticket = await ticket
                if ticket is not None:
                    attempt.tickets.append(ticket)
        except Skip as skip:
            self._skips.append((target, skip))
            call.note("pipeline", "skipped", f"{target.deployment.id}: {skip.reason}")
            self._live.remove(attempt)
            await self._settlement.run(self._settlement.settle(attempt.tickets, Result("rejected", attempt=attempt)))
            return None
        call.attempts.append(attempt)
        return attempt

    async def _race(self, attempt: Attempt) -> tuple[Attempt, Reply | None]:
        """Send `attempt`, and hedges where its target says so. The first to begin a reply wins; the failed are ended, the late cancelled."""
        if attempt.target.hedge_after_s is None or not self._waiting:
            reply = await self._send(self.call, attempt)
            if reply is None:
                await self.end(attempt, "upstream_error")
            return attempt, reply
        live = {asyncio.ensure_future(self._send(self.call, attempt)): attempt}
        last = attempt
        try:
            while live:
                hedge_after_s = last.target.hedge_after_s if self._waiting else None
                done, _ = await asyncio.wait(live, timeout=hedge_after_s, return_when=asyncio.FIRST_COMPLETED)
                if not done and self._waiting:
                    hedge = await self._open(self._waiting.popleft())
                    if hedge is not None:
                        hedge.is_hedge, last = True, hedge
                        live[asyncio.ensure_future(self._send(self.call, hedge))] = hedge
                for task in done:
                    attempt = live.pop(task)
                    reply = task.result()
                    if reply is not None:
                        return attempt, reply
                    await self.end(attempt, "upstream_error")
            return attempt, None
        finally:
            for task, loser in live.items():
                task.cancel()
                loser.is_loser = True
            if live:
                await asyncio.wait(live)
                for task, loser in live.items():
                    if not task.cancelled() and (late := task.result()) is not None:
                        await close_body(late.body)
                    await self.end(loser, "client_gone")

    async def _send(self, call: Call, attempt: Attempt) -> Reply | None:
        """The reply once it has begun, or None with `attempt.error` set."""
        deployment = attempt.deployment
        try:
            reply = await self._providers[deployment.provider].send(call, attempt)
            attempt.status = reply.status
            if reply.status >= 400:
                raise _status_error(deployment.id, reply)
            body = reply.body
            if isinstance(body, bytes):
                attempt.first_byte_at = self._clock.monotonic()
                attempt.is_complete = True
                if call.method == "POST":
                    attempt.usage = usage_of(_member(reply.json(), "usage"))
                return reply
            self._bodies.append(body)
            if reply.is_event_stream:
                reply.body = await self._peek(attempt, body)
            else:
                attempt.first_byte_at = self._clock.monotonic()
            return reply
        except ApiError as error:
            attempt.error = error
        except Exception as error:
            attempt.error = as_upstream_error(error, deployment.id)
        return None

    async def _peek(self, attempt: Attempt, body: AsyncIterator[bytes]) -> Any:
        """Read up to the first event, so that an error there still counts as before the first byte. Raises UpstreamError for one."""
        first = await anext(body, None)
        attempt.first_byte_at = self._clock.monotonic()
        if first is None:
            raise UpstreamError(f"{attempt.deployment.id} ended its stream before the first event", kind="reset")
        head, pending = [first], None
        if not _has_event(first):
            loop = asyncio.get_running_loop()
            give_up_at = loop.time() + PEEK_S
            while pending is None and sum(map(len, head)) < PEEK_BYTES and not _has_event(b"".join(head)):
                pending = asyncio.ensure_future(_next(body))
                try:
                    await asyncio.wait({pending}, timeout=max(give_up_at - loop.time(), 0.0))
                except BaseException:
                    pending.cancel()
                    raise
                if pending.done():
                    chunk = pending.result()
                    if chunk is None:
                        break
                    head.append(chunk)
                    pending = None
        if b"error" in first or len(head) > 1:
            for block in b"".join(head).replace(b"\r\n", b"\n").split(b"\n\n")[:8]:
                if told := error_in(block + b"\n\n"):
                    await close_body(PeekedBody(head, pending, body))
                    raise _stream_error(attempt.deployment.id, told)
        return PeekedBody(head, pending, body)

    async def _after_failure(self, attempt: Attempt) -> Step | None:
        for impl in self._chain.after_failure:
            step: Step | None = impl.run(self.call, attempt)
            if impl.is_async:
                step = await step  # type: ignore[misc]
            if step is not None:
                return step
        return None


def no_target_error(skips: Sequence[tuple[Target, Skip]]) -> ApiError:
    """What the client is told when no target is left and none was tried."""
    reasons = "; ".join(f"{target.deployment.id}: {skip.reason}" for target, skip in skips) or "no target was chosen"
    errors = [skip.error for _, skip in skips if skip.error is not None]
    if errors and len(errors) == len(skips):
        is_quota = all(isinstance(e, InsufficientQuota) for e in errors)
        if is_quota or all(400 <= e.status < 500 and e.status != 429 for e in errors):
            return errors[0]
        if all(isinstance(e, RateLimited) for e in errors):
            waits = [e.retry_after_s for e in errors if e.retry_after_s is not None]
            return RateLimited(f"no deployment may be called now: {reasons}", retry_after_s=min(waits, default=1.0))
    waits = [e.retry_after_s for e in errors if e.retry_after_s is not None]
    return Unavailable(f"no deployment can take this call: {reasons}", retry_after_s=min(waits, default=1.0))


def as_upstream_error(error: Exception, deployment: str) -> UpstreamError:
    """Any failure of an upstream's body as an UpstreamError. A transport's own error is known by its `kind`."""
    if isinstance(error, UpstreamError):
        return error
    kind = getattr(error, "kind", None)
    if kind in UPSTREAM_KINDS:
        return UpstreamError(f"{deployment}: {error}", kind=kind, is_written=getattr(error, "is_written", True))
    log.error("%s: the provider failed: %s: %s", deployment, type(error).__name__, error, exc_info=error)
    return UpstreamError(f"{deployment}: the answer could not be read; see the log of the gateway", kind="garbage")


async def close_body(body: Any) -> None:
    """Abandon a body that nobody will read on."""
    if isinstance(body, PeekedBody):
        if body.pending is not None:
            body.pending.cancel()
            await asyncio.wait({body.pending})
        body = body.rest
    closing = getattr(body, "aclose", None)
    if closing is not None:
        await closing()


def _result(attempt: Attempt, outcome: Outcome) -> Result:
    """The attempt's end. What an upstream refused, or never received, costs nothing; where usage or price is missing, the cost is unknown."""
    usage, price, error = attempt.usage, attempt.deployment.price, attempt.error
    cost: int | None = None
    if usage is not None and price is not None:
        cost = price.cost_nanousd(usage)
    elif usage is None and error is not None:
        is_free = not isinstance(error, UpstreamError) or error.upstream_status is not None or not error.is_written
        cost = 0 if is_free and outcome == "upstream_error" else None
    return Result(
        outcome,
        attempt=attempt,
        status=attempt.status,
        usage=usage,
        cost_nanousd=cost,
        is_estimated=(usage is None and cost is None) or bool(usage and usage.is_estimated),
        error=error,
        ended_at=attempt.ended_at or 0.0,
        first_byte_at=attempt.first_byte_at,
    )


def _unsupported(call: Call, target: Target) -> BadRequest:
    return BadRequest(
        f"{target.deployment.id} has no endpoint for {call.method} {call.path}; ask a model at a provider that has it",
        code="unsupported_endpoint",
    )


def _status_error(deployment: str, reply: Reply) -> UpstreamError:
    wait = reply.headers.get("retry-after", "")
    return UpstreamError(
        f"{deployment} answered {reply.status}",
        kind="status",
        upstream_status=reply.status,
        upstream_body=reply.body if isinstance(reply.body, bytes) else b"",
        upstream_headers=reply.headers,
        retry_after_s=float(wait) if wait.replace(".", "", 1).isdigit() else None,
    )


def _stream_error(deployment: str, told: dict[str, Any]) -> UpstreamError:
    code = str(told.get("code"))
    status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else 502
    return UpstreamError(
        f"{deployment} began its stream with an error",
        kind="stream_error",
        upstream_status=status,
        upstream_body=orjson.dumps({"error": told}),
        upstream_headers={"content-type": "application/json"},
    )


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)


def _has_event(head: bytes) -> bool:
    """Whether a whole event other than a comment has arrived."""
    blocks = head.replace(b"\r\n", b"\n").split(b"\n\n")[:-1] if b"\r" in head or head.startswith(b":") else None
    if blocks is None:
        return b"\n\n" in head
    return any(block and not block.startswith(b":") for block in blocks)


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
