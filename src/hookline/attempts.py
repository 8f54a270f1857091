"""The attempt loop: from targets to the first byte of a reply.

Lives here: opening, sending and ending attempts.
Elsewhere: an attempt and its hedges (race.py), what may be tried again (builtins/fallback says it by `after_failure`), what a failure is called (attempt_errors.py), the beginning of a stream (peek.py),
the rest of it (relay.py), a continuation's events (continuation.py).
Idea: the loop runs over a set of live attempts. Usually it is one, in the call's own task."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

import orjson

from hookline.attempt import Attempt, Outcome, Provider, Result
from hookline.attempt_errors import (
    ANYTHING,
    as_upstream_error,
    check_answer,
    no_target_error,
    status_error,
    stream_error,
    unsupported,
)
from hookline.bounds import INPUT_BOUND, measure_input
from hookline.call import Call
from hookline.chain import Chain
from hookline.chat_view import EVENTS_OF_JSON
from hookline.content_filter import FILTERED
from hookline.continuation import JoinedBody
from hookline.deployment import Target
from hookline.errors import ApiError, BadRequest, Skip, UpstreamError
from hookline.flight import SHARE, Share
from hookline.guards import Waiting
from hookline.host import Clock
from hookline.money import Usage
from hookline.openai_wire import usage_in
from hookline.peek import PeekedBody, close_body, peek
from hookline.plain_as_stream import tell_as_stream
from hookline.race import Race
from hookline.reply import Reply, Source
from hookline.results import SKIPPED, cost_of, end_of, sum_of
from hookline.settling import Settlement, Steps, is_being_cancelled, settled
from hookline.steps import TARGETS_LEFT, Continue, Fallback, Retry, Step

ATTEMPTS_MAX = 32
"""A bound for plugins that would retry for ever; nobody who waits wants the 33rd."""


class AttemptLoop:
    """The attempts of one call. `results` has the end of each, in order of ending."""

    __slots__ = (
        "_again", "_bodies", "_chain", "_clock", "_live", "_providers", "_settlement", "_skips", "call", "results", "waiting",
    )  # fmt: skip

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
        self.waiting: deque[Target] = deque()
        self._again: list[tuple[float, Target]] = []
        self._skips: list[tuple[Target, Skip]] = []
        self.results: list[Result] = []

    async def first_reply(self, targets: Sequence[Target]) -> tuple[Attempt, Reply]:
        """Try until a reply has begun. Raises the last error, or what `no_target_error` makes of the skips."""
        self.waiting.extend(targets)
        error: ApiError | None = None
        while len(self.call.attempts) < ATTEMPTS_MAX and (target := await self._next_target()) is not None:
            attempt = await self._open(target)
            if attempt is None:
                continue
            if target.hedge_after_s is None or not self.waiting or not self._is_replayable:
                reply = await self.send(self.call, attempt)
                if reply is None:
                    await settled(self.end(attempt, "upstream_error"))
            else:
                attempt, reply = await Race(self).run(attempt)
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
                self.waiting.appendleft(attempt.target)
            elif isinstance(step, Fallback):
                self._replace_waiting(step.targets)
                if step.retry_in_s is None:
                    self._again.clear()
                else:
                    self._again.append((self._clock.monotonic() + step.retry_in_s, attempt.target))
            else:
                break
        raise error or no_target_error(self._skips)

    async def go_on(
        self, failed: Attempt, *, may_continue: bool, has_spoken: bool
    ) -> tuple[Attempt, AsyncIterator[bytes]] | None:
        """After bytes have left: the next target's stream if a plugin answers `Continue`, or `Fallback` where only comments have; else None."""
        step = await self._after_failure(failed)
        if not (isinstance(step, Continue) and may_continue) and not (isinstance(step, Fallback) and not has_spoken):
            return None
        self._replace_waiting(step.targets)
        while self.waiting and len(self.call.attempts) < ATTEMPTS_MAX:
            target, call = self.waiting.popleft(), self.call
            if isinstance(step, Continue):
                call = self._call_going_on(step.messages_by_deployment.get(target.deployment.id, step.messages))
            attempt = await self._open(target)
            if attempt is None:
                continue
            if isinstance(step, Continue) and step.output_cap is not None:
                attempt.lower_output_cap(step.output_cap)
            reply = await self.send(call, attempt)
            if reply is not None and not isinstance(reply.body, bytes) and reply.is_event_stream:
                if not isinstance(step, Continue):
                    return attempt, reply.body
                joined = JoinedBody(reply.body, self.call, step.members)
                self._bodies[self._bodies.index(reply.body)] = joined
                return attempt, joined
            if reply is not None:
                attempt.error = UpstreamError(f"{attempt.deployment.id} answered without a stream", kind="garbage")
            await settled(self.end(attempt, "upstream_error"))
        return None

    async def _next_target(self) -> Target | None:
        """The first that waits. With none left, the one that may be tried again first, when its time has come."""
        if self.waiting:
            return self.waiting.popleft()
        if not self._again:
            return None
        due_at, target = again = min(self._again, key=lambda one: one[0])
        self._again.remove(again)
        if (delay_s := due_at - self._clock.monotonic()) > 0:
            await self.call.sleep(delay_s)
        return target

    def _replace_waiting(self, targets: Sequence[Target] | None) -> None:
        if targets is not None:
            self.waiting = deque(targets)

    def _call_going_on(self, messages: Sequence[Any]) -> Call:
        """The call as a continuation sends it."""
        call, original = copy.copy(self.call), self.call
        call._chat = None
        payload = {**(original.payload or {}), "messages": list(messages)}
        call.set_json(orjson.dumps(payload), payload)
        original[INPUT_BOUND] = measure_input(call)  # the slots are shared: what is sent now is longer
        return call

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
                raise Skip(f"has no {call.endpoint} endpoint", unsupported(call, target))
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

    async def open_hedge(self) -> Attempt | None:
        """The first waiting target that lets a hedge in. The others keep their place: they are asked again if it comes to a fallback."""
        skips = len(self._skips)
        try:
            for target in tuple(self.waiting):
                if (hedge := await self._open(target, is_hedge=True)) is not None:
                    self.waiting.remove(target)
                    return hedge
            return None
        finally:
            del self._skips[skips:]

    @property
    def _is_replayable(self) -> bool:
        """Whether the request can be sent more than once."""
        return self.call.upload is None or self.call.upload.is_replayable

    async def send(self, call: Call, attempt: Attempt) -> Reply | None:
        """The reply once it has begun, or None with `attempt.error` set."""
        deployment = attempt.deployment
        try:
            reply = await self._providers[deployment.provider].send(call, attempt)
            attempt.reply, attempt.status = reply, reply.status
            body = reply.body
            if not isinstance(body, bytes):
                self._bodies.append(body)
            if reply.status >= 400:
                raise status_error(deployment.id, reply)
            if isinstance(body, bytes):
                attempt.is_complete = True
                if call.method == "POST":
                    told = reply.json()
                    attempt.usage = usage_in(told)
                    check_answer(call, attempt, reply, told)
                    if call.is_stream and call.endpoint in EVENTS_OF_JSON and reply.status < 300:
                        self._bodies.append(tell_as_stream(call, attempt, reply))
            elif reply.is_event_stream:
                if not call.is_stream and call.endpoint not in ANYTHING:
                    raise UpstreamError(
                        f"{deployment.id} answered with a stream that was not asked for", kind="garbage"
                    )
                await self._peek(attempt, reply, body)
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
        if attempt.reply is not None and attempt.reply.body in self._bodies:
            await self.close(attempt.reply.body)  # now: another attempt may take long
        return None

    async def _peek(self, attempt: Attempt, reply: Reply, body: AsyncIterator[bytes]) -> None:
        """Read the stream's first event. Raises UpstreamError if that is an error, or none came."""
        first = await anext(body, None)
        attempt.first_byte_at = self._clock.monotonic()
        if first is None:
            raise UpstreamError(f"{attempt.deployment.id} ended its stream before the first event", kind="reset")
        self._bodies.remove(body)
        peeked: Any = PeekedBody(body, [first])
        reply.body = peeked
        self._bodies.append(peeked)
        sees_filter = attempt.is_failed_by_filter and self.call.chat.choices == 1
        if told := await peek(peeked, self.call.endpoint, sees_filter=sees_filter):
            if told is FILTERED or peeked.said_bytes is not None:  # it has read the request, and may have answered
                attempt.usage = Usage(len(self.call.body), peeked.said_bytes or 0, is_estimated=True)
            raise stream_error(attempt.deployment.id, told)

    async def _after_failure(self, attempt: Attempt) -> Step | None:
        self.call[TARGETS_LEFT] = self.waiting
        for impl in self._chain.after_failure:
            answer = impl.run(self.call, attempt)
            step: Step | None = (await answer) if type(answer) is Waiting else answer
            if step is not None:
                return step
        return None
