"""The attempt loop: from targets to the first byte of a reply.

Lives here: opening, sending, hedging and ending attempts; what the client is told when no target is left.
Elsewhere: what may be tried again (builtins/fallback.py says it by `after_failure`), the beginning of a stream (peek.py), the rest of it (relay.py).
Idea: the loop runs over a set of live attempts. Usually it is one, which then runs in the call's own task; a hedge makes tasks of them."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from hookline.attempt import Attempt, Outcome, Provider, Result
from hookline.bounds import INPUT_BOUND, measure_input
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
from hookline.flight import SHARE, Share
from hookline.guards import Waiting
from hookline.host import Clock
from hookline.openai_wire import usage_in
from hookline.peek import PeekedBody, close_body, peek
from hookline.reply import Reply, Source
from hookline.results import SKIPPED, cost_of, end_of, sum_of
from hookline.settling import Settlement, Steps, end_tasks, is_being_cancelled, settled
from hookline.steps import Continue, Fallback, Retry, Step

log = logging.getLogger("hookline.attempts")

ATTEMPTS_MAX = 32
"""A bound for plugins that would retry for ever; nobody who waits wants the 33rd."""


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
        self._bodies: list[Any] = []
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
            if target.hedge_after_s is None or not self._waiting or not self._is_replayable:
                reply = await self._send(self.call, attempt)
                if reply is None:
                    await settled(self.end(attempt, "upstream_error"))
            else:
                attempt, reply = await self._race(attempt)
            if reply is not None:
                return attempt, reply
            if not isinstance(attempt.error, UpstreamError):  # the provider can't say this: a skip found out late
                told = attempt.error or BadRequest("not sent")
                self._skips.append((attempt.target, Skip(told.message, told)))
                continue
            error = attempt.error
            if not self._is_replayable:
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
        call._chat = None
        payload = {**(original.payload or {}), "messages": list(step.messages)}
        call.set_json(orjson.dumps(payload), payload)
        original[INPUT_BOUND] = measure_input(call)  # the slots are shared: what is sent now is longer
        while self._waiting:
            attempt = await self._open(self._waiting.popleft())
            if attempt is None:
                continue
            reply = await self._send(call, attempt)
            if reply is not None and not isinstance(reply.body, bytes) and reply.is_event_stream:
                return attempt, reply.body
            if reply is not None:
                attempt.error = UpstreamError(f"{attempt.deployment.id} answered without a stream", kind="garbage")
            await settled(self.end(attempt, "upstream_error"))
        return None

    async def ask(self, targets: Sequence[Target]) -> Reply:
        """A dry run: what `admit_attempt` says to each target. Nothing is sent; what was taken nevertheless is given back."""
        kept: list[str] = []
        for target in targets:
            attempt = await self._open(target)
            if attempt is not None:
                kept.append(target.deployment.id)
                self.call.note("pipeline", "kept", f"{target.deployment.id}: {target.reason or 'would be tried'}")
                self._live.remove(attempt)
                await settled(self._settlement.run(self._give_back(attempt, "rejected")))
        if not kept:
            raise no_target_error(self._skips)
        return Reply(200, {"content-type": "application/json"}, orjson.dumps({"deployments": kept}), source="local")

    def end(self, attempt: Attempt, outcome: Outcome) -> Awaitable[None] | None:
        """End an attempt once: `attempt_ended`, then its tickets, last taken first. What has to be waited for comes back."""
        return self._settlement.run(self._end_steps(attempt, outcome))

    def end_all(self, outcome: Outcome) -> Awaitable[None] | None:
        """End what is still alive: the call was cancelled, refused after its first byte, or cut. What has to be waited for comes back."""
        return self._settlement.run(self._last_steps(outcome)) if self._live or self._bodies else None

    async def close(self, body: Any) -> None:
        """Close a body of `first_reply` or `go_on`; `end_all` closes those that nobody began to read."""
        if body in self._bodies:
            self._bodies.remove(body)
        await close_body(body)

    def result(
        self, outcome: Outcome, *, source: Source, status: int | None, error: ApiError | None, ended_at: float
    ) -> Result:
        """The end of the call: the usage of the attempts that were answered (two where a stream was continued); the cost of all."""
        attempts, ends = self.call.attempts, self.results
        attempt = attempts[-1] if attempts else None
        if len(attempts) == 1 and len(ends) == 1:  # nearly every call
            usage = ends[0].usage
            cost, is_estimated = cost_of(ends[0])
        else:
            attempt = next((a for a in reversed(attempts) if not a.is_loser), None)
            usage, cost, is_estimated = sum_of(ends), self.cost_nanousd, any(cost_of(end)[1] for end in ends)
        return Result(
            outcome,
            source,
            attempt,
            status,
            usage,
            cost,
            is_estimated,
            error or (attempt.error if attempt is not None and outcome != "ok" else None),
            ended_at,
            attempt.first_byte_at if attempt is not None else None,
        )

    @property
    def cost_nanousd(self) -> int | None:
        """What the attempts that have ended cost together, or a follower's share; None where that of one is not known."""
        if len(self.results) == 1:
            return cost_of(self.results[0])[0]
        share: Share | None = self.call.slots.get(SHARE)
        if share is not None and not self.results:
            return share.cost_nanousd
        costs = [cost_of(end)[0] for end in self.results]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def _last_steps(self, outcome: Outcome) -> Steps:
        while self._bodies:
            yield close_body(self._bodies.pop())
        for attempt in list(self._live):
            yield from self._end_steps(attempt, outcome)

    def _end_steps(self, attempt: Attempt, outcome: Outcome) -> Steps:
        if attempt not in self._live:
            return
        self._live.remove(attempt)
        if attempt not in self.call.attempts:  # cancelled while it asked to be admitted: nothing was tried
            yield from self._give_back(attempt, outcome)
            return
        attempt.ended_at = self._clock.monotonic()
        result = end_of(self.call, attempt, outcome)
        self.results.append(result)
        for impl in self._chain.attempt_ended:
            pending = impl.run(self.call, attempt)
            if type(pending) is Waiting:
                yield pending
        yield from self._settlement.settle(attempt.tickets, result)

    def _give_back(self, attempt: Attempt, outcome: Outcome) -> Steps:
        return self._settlement.settle(attempt.tickets, Result(outcome, attempt=attempt))

    async def _open(self, target: Target, *, is_hedge: bool = False) -> Attempt | None:
        """Ask `admit_attempt`; None if the target was skipped (what was taken for it is given back)."""
        call = self.call
        attempt = Attempt(target, len(call.attempts) + 1, self._clock.monotonic())
        attempt.is_hedge = is_hedge
        provider = self._providers[target.deployment.provider]
        self._live.append(attempt)
        try:
            if call.endpoint not in provider.endpoints:
                raise Skip(f"has no {call.endpoint} endpoint", _unsupported(call, target))
            for impl in self._chain.admit_attempt:
                ticket = impl.run(call, target, attempt)
                if type(ticket) is Waiting:
                    ticket = await ticket
                if ticket is not None:
                    attempt.tickets.append(ticket)
        except Skip as skip:
            self._skips.append((target, skip))
            call.note("pipeline", "skipped", f"{target.deployment.id}: {skip.reason}")
            call.slots.setdefault(SKIPPED, []).append((target.deployment.id, skip.reason))
            self._live.remove(attempt)
            await settled(self._settlement.run(self._give_back(attempt, "rejected")))
            return None
        if not call.is_dry_run:
            call.attempts.append(attempt)
        return attempt

    async def _race(self, attempt: Attempt) -> tuple[Attempt, Reply | None]:
        """Send `attempt`, and hedges when they are due. The first to begin a reply wins; the failed are ended, the late cancelled."""
        live = {asyncio.ensure_future(self._send(self.call, attempt)): attempt}
        last: Attempt | None = attempt
        failed = attempt
        try:
            while live:
                hedge_after_s = last.target.hedge_after_s if last is not None and self._waiting else None
                done, _ = await asyncio.wait(live, timeout=hedge_after_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    last = await self._open_hedge()
                    if last is not None:
                        live[asyncio.ensure_future(self._send(self.call, last))] = last
                for task in [task for task in live if task in done]:  # of two at once, the one asked first
                    attempt = live.pop(task)
                    reply = task.result()
                    if reply is not None:
                        for loser in live.values():
                            loser.is_loser = True
                        return attempt, reply
                    failed = attempt if isinstance(attempt.error, UpstreamError) else failed
                    await settled(self.end(attempt, "upstream_error"))
            return failed, None
        finally:
            if live:
                await end_tasks(live)
                for task, loser in live.items():
                    if loser.is_loser:
                        if not task.cancelled() and (late := task.result()) is not None:
                            await self.close(late.body)
                        await settled(self.end(loser, "client_gone"))

    async def _open_hedge(self) -> Attempt | None:
        """The first waiting target that lets a hedge in. The others keep their place: they are asked again if it comes to a fallback."""
        skips = len(self._skips)
        try:
            for target in tuple(self._waiting):
                if (hedge := await self._open(target, is_hedge=True)) is not None:
                    self._waiting.remove(target)
                    return hedge
            return None
        finally:
            del self._skips[skips:]

    @property
    def _is_replayable(self) -> bool:
        """Whether the request can be sent more than once."""
        return self.call.upload is None or self.call.upload.is_replayable

    async def _send(self, call: Call, attempt: Attempt) -> Reply | None:
        """The reply once it has begun, or None with `attempt.error` set."""
        deployment = attempt.deployment
        try:
            reply = await self._providers[deployment.provider].send(call, attempt)
            attempt.reply, attempt.status = reply, reply.status
            body = reply.body
            if not isinstance(body, bytes):
                self._bodies.append(body)
            if reply.status >= 400:
                raise _status_error(deployment.id, reply)
            if isinstance(body, bytes):
                attempt.is_complete = True
                if call.method == "POST":
                    told = reply.json()
                    attempt.usage = usage_in(told)
                    if told is None and reply.status == 200 and is_json_due(call, reply):
                        raise UpstreamError(f"{deployment.id} answered 200 with what is no JSON", kind="garbage")
            elif reply.is_event_stream:
                reply.body = await self._peek(attempt, body)
                return reply
            attempt.first_byte_at = self._clock.monotonic()
            return reply
        except ApiError as error:
            attempt.error = error
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            attempt.error = as_upstream_error(RuntimeError(f"cancelled itself: {error}"), deployment.id)
        except Exception as error:
            attempt.error = as_upstream_error(error, deployment.id)
        return None

    async def _peek(self, attempt: Attempt, body: AsyncIterator[bytes]) -> Any:
        """The stream with its first event read. Raises UpstreamError if that is an error, or none came."""
        first = await anext(body, None)
        attempt.first_byte_at = self._clock.monotonic()
        if first is None:
            raise UpstreamError(f"{attempt.deployment.id} ended its stream before the first event", kind="reset")
        self._bodies.remove(body)
        peeked = PeekedBody(body, [first])
        self._bodies.append(peeked)
        if told := await peek(peeked):
            await self.close(peeked)
            raise _stream_error(attempt.deployment.id, told)
        return peeked

    async def _after_failure(self, attempt: Attempt) -> Step | None:
        for impl in self._chain.after_failure:
            answer = impl.run(self.call, attempt)
            step: Step | None = (await answer) if type(answer) is Waiting else answer
            if step is not None:
                return step
        return None


def named(reply: Reply, call: Call, attempt: Attempt) -> Reply:
    """`reply`, saying which deployment it is from and how many were asked."""
    headers = reply.headers
    headers["x-hookline-deployment"] = attempt.deployment.id
    headers["x-hookline-attempts"] = str(len(call.attempts))
    if attempt.output_cap is not None:
        limit = call.chat.max_output_tokens
        if limit is None or attempt.output_cap < limit:
            headers["x-hookline-output-capped"] = str(attempt.output_cap)
    return reply


def no_target_error(skips: Sequence[tuple[Target, Skip]]) -> ApiError:
    """What the client is told when no target is left and none was tried."""
    reasons = "; ".join(f"{target.deployment.id}: {skip.reason}" for target, skip in skips) or "no target was chosen"
    errors = [skip.error for _, skip in skips if skip.error is not None]
    waits = [e.retry_after_s for e in errors if e.retry_after_s is not None]
    if errors and len(errors) == len(skips):
        if all(400 <= e.status < 500 and e.status != 429 for e in errors):
            return errors[0]
        quota = [e for e in errors if isinstance(e, InsufficientQuota)]
        if quota and all(400 <= e.status < 500 and (e.status != 429 or e in quota) for e in errors):
            if len(errors) == 1:
                return errors[0]
            return InsufficientQuota(
                f"no deployment fits what is left: {reasons}", retry_after_s=min(waits, default=None)
            )
        if all(isinstance(e, RateLimited) for e in errors):
            may_retry = any(e.may_retry for e in errors)
            after_s = min(waits, default=1.0 if may_retry else None)
            told = f"no deployment may be called now: {reasons}"
            return RateLimited(told, retry_after_s=after_s, may_retry=may_retry)
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


def _unsupported(call: Call, target: Target) -> BadRequest:
    return BadRequest(
        f"{target.deployment.id} has no endpoint for {call.method} {call.path}; ask a model at a provider that has it",
        code="unsupported_endpoint",
    )


def _status_error(deployment: str, reply: Reply) -> UpstreamError:
    return UpstreamError(
        f"{deployment} answered {reply.status}",
        kind="status",
        upstream_status=reply.status,
        upstream_body=reply.body if isinstance(reply.body, bytes) else b"",
        upstream_headers=reply.headers,
        retry_after_s=seconds_of(reply.headers.get("retry-after", "")),
    )


def seconds_of(retry_after: str) -> float | None:
    """What a `retry-after` says: seconds, or the time until an HTTP date (RFC 9110, 10.2.3)."""
    if len(retry_after) < 20 and retry_after.isascii() and retry_after.replace(".", "", 1).isdigit():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


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


def is_json_due(call: Call, reply: Reply) -> bool:
    """Whether the reply must be JSON: on the endpoints that know nothing else, unless it is compressed and so can't be read."""
    return call.endpoint not in ("relay", "models") and "content-encoding" not in reply.headers
