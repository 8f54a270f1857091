"""The pipeline: one call through the hooks, the attempts and back to the client. The only way to a provider.

Lives here: `run(call)`: the hooks in order, the way of every error, the end of a call. Elsewhere: the hooks' contracts (hookspecs.py), the attempt loop
(attempts.py), a streamed body (relay.py), settling (settling.py).
Idea: whatever happens, a call ends once: attempts end, tickets settle, `call_ended` is told. Everything that was taken is taken inside `_Run.go`.

State          | goes on to                                             | other ways out, with their outcome
authenticating | loading: somebody vouched, or nobody is asked          | rejected 401; internal_error (a plugin broke)
loading        | preparing: the body is parsed                          | rejected 400, 408, 413, 415; client_gone
preparing      | routing: the request is frozen                         | rejected; internal_error
routing        | admitting: the name means deployments                  | rejected 400, 403, 404
admitting      | looking up: all tickets taken                          | rejected 429; internal_error; timeout
looking up     | replying (cache, replay, coalesced), or selecting      | rejected
selecting      | attempting                                             | rejected 400; internal_error
attempting     | replying: a target began its answer                    | upstream_error, rescued or not; rejected (budget); timeout; client_gone
replying       | delivering: edited                                     | internal_error (an edit broke: 500, nothing has left)
delivering     | ended: ok                                              | client_gone; upstream_lost (error event, no clean end); timeout; shutdown
ended          |                                                        | from every state: attempts, tickets, call_ended, once
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from hookline.attempt import Outcome, Provider, Ticket
from hookline.attempts import AttemptLoop, close_body
from hookline.call import Call
from hookline.call_timer import CallTimer
from hookline.catalog import Catalog
from hookline.chain import Chain
from hookline.deployment import Deployment, Target
from hookline.errors import ApiError, ClientGone, InternalError, Rejected, Unavailable, UpstreamError
from hookline.host import Clock, Metrics
from hookline.pipeline_settings import PipelineSettings
from hookline.principal import ANONYMOUS
from hookline.relay import Layer, edited, relay, with_heartbeats
from hookline.reply import Reply
from hookline.settling import Settlement, Steps
from hookline.slots import EXPOSED_HEADERS

log = logging.getLogger("hookline.pipeline")

Deliver = Callable[[Reply], Awaitable[None]]
"""How a surface writes a reply. Raises ClientGone; lets an error of the body through after ending the connection without a clean terminator."""

OUTERMOST = 1 << 30
"""The place in the chain of a reply that no plugin made: it passes every edit."""
TIMED_EVERY = 64


class Pipeline:
    """One compiled configuration. A reload makes a new one; running calls finish on theirs."""

    def __init__(
        self,
        *,
        chain: Chain,
        catalog: Catalog,
        providers: Mapping[str, Provider],
        clock: Clock,
        metrics: Metrics,
        settings: PipelineSettings | None = None,
    ) -> None:
        self.chain = chain
        self.catalog = catalog
        self.providers = providers
        self.clock = clock
        self.settings = settings or PipelineSettings()
        self.unsettled = metrics.counter("hookline_settle_errors_total", "Tickets that did not settle.")()
        self.calls = 0
        self.running = 0
        self.pumps = 0
        self._detached: set[asyncio.Task[None]] = set()
        self._not_asked = tuple(p.name for p in chain.plugins if not p.supports_dry_run)
        self._dry_chain = chain.without(self._not_asked)

    async def run(self, call: Call, deliver: Deliver) -> None:
        """Take `call` through the chain and hand its reply to `deliver`. Every outcome is a Reply; raises only if cancelled from outside."""
        self.calls += 1
        chain = self.chain if self.calls % TIMED_EVERY else self.chain.timed
        if call.is_dry_run:
            chain = self._dry_chain
            for name in self._not_asked:
                call.note(name, "not asked", "the plugin can't answer a dry run")
        self.running += 1
        try:
            await _Run(self, chain, call, deliver).go()
        finally:
            self.running -= 1

    def detach(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the rest of an end in its own task, waited for by `drained`."""
        task = asyncio.ensure_future(coro)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        return task

    async def drained(self) -> None:
        """Wait for detached ends."""
        while self._detached:
            await asyncio.wait(self._detached)


class _Run:
    """One call on its way."""

    __slots__ = ("_chain", "_error", "_is_client_gone", "_is_pumping", "_loop", "_outcome", "_pipe", "_settlement", "_source",
                 "_status", "_task", "_tickets", "_timer", "call", "deliver")  # fmt: skip

    def __init__(self, pipe: Pipeline, chain: Chain, call: Call, deliver: Deliver) -> None:
        self._pipe = pipe
        self._chain = chain
        self.call = call
        self.deliver = deliver
        self._settlement = Settlement(
            call, detach=pipe.detach, timeout_s=pipe.settings.settle_timeout_s, failures=pipe.unsettled
        )
        self._loop = AttemptLoop(
            call, chain=chain, providers=pipe.providers, clock=pipe.clock, settlement=self._settlement
        )
        self._tickets: list[Ticket] = []
        self._outcome: Outcome = "ok"
        self._error: ApiError | None = None
        self._source: Any = "local"
        self._status: int | None = None
        self._is_client_gone = False
        self._is_pumping = False

    async def go(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, call = task, self.call
        self._timer = call._timer = CallTimer(asyncio.get_running_loop(), task, self._pipe.settings.total_timeout_s)
        call.on_disconnect = self._pipe.settings.on_disconnect
        call.client_closed = self._client_closed
        try:
            if self._pipe.settings.heartbeat_s > 0:
                await self._hand_over(await self._reply_with_heartbeats())
            else:
                await self._hand_over(await self._reply())
        except asyncio.CancelledError:
            if self._timer.was_cancelled_for("deadline"):
                self._outcome = "timeout"
            elif self._is_client_gone and task.uncancel() == 0:
                self._outcome = "client_gone"
            else:
                self._outcome = "shutdown"
                raise
        finally:
            call.client_closed = None
            self._timer.stop()
            if self._is_pumping:
                self._pipe.pumps -= 1
            await self._loop.end_all(self._outcome)
            await self._settlement.run(self._end_steps())

    def _client_closed(self) -> None:
        """The surface says that the client has gone: stop, or drain without it."""
        self._is_client_gone = True
        if self.call.on_disconnect == "drain" and self._pipe.pumps < self._pipe.settings.max_pumps:
            self._is_pumping = True
            self._pipe.pumps += 1
        else:
            self._task.cancel()

    async def _reply(self) -> Reply:
        """The reply to hand over, edited, whatever happened."""
        maker = OUTERMOST
        try:
            reply, maker = await self._answer()
        except asyncio.CancelledError:
            if not self._timer.was_cancelled_for("deadline"):
                raise
            reply = self._refuse(UpstreamError("the call reached its deadline", kind="deadline"))
        except Exception as error:
            reply = self._refuse(error)
        try:
            return await self._edit(reply, maker)
        except Rejected as rejected:
            await close_body(reply.body)
            self._source = "local"
            return self._refuse(rejected)

    def _refuse(self, error: Exception) -> Reply:
        """An error as a reply; notes the outcome."""
        if isinstance(error, Rejected):
            error = error.error
        if not isinstance(error, ApiError):
            log.error("call %s failed: %s: %s", self.call.id, type(error).__name__, error, exc_info=error)
            error = InternalError("the gateway failed; see its log")
        self._error, self._outcome = error, _outcome_of(error)
        if isinstance(error, UpstreamError) and error.upstream_body is not None:
            return Reply(error.reply_status, error.upstream_headers, error.upstream_body)
        return Reply.from_error(error)

    async def _answer(self) -> tuple[Reply, int]:
        """Hooks 1 to 9: a reply, and the place in the chain of who made it."""
        call, chain, catalog = self.call, self._chain, self._pipe.catalog
        if call.principal is ANONYMOUS:
            for impl in chain.authenticate:
                principal = (await impl.run(call)) if impl.is_async else impl.run(call)
                if principal is not None:
                    call.principal = principal
                    break
        if call.load is not None:
            await call.load(call)
        for impl in chain.prepare:
            if impl.is_async:
                await impl.run(call)
            else:
                impl.run(call)
        call.freeze()
        if call.deadline is not None:
            self._timer.set_deadline(call.deadline - self._pipe.clock.monotonic())
        deployments: tuple[Deployment, ...] = ()
        if call.local is None:
            name = call.model
            deployments = catalog.resolve(name, call) if name is not None else catalog.resolve_without_model(call)
            catalog.check_allowed(call.principal, name, call)
        for impl in chain.admit:
            self._take((await impl.run(call)) if impl.is_async else impl.run(call))
        if call.local is not None:
            return await call.local(call), OUTERMOST
        for impl in chain.lookup:
            found = (await impl.run(call)) if impl.is_async else impl.run(call)
            if isinstance(found, Reply):
                self._source = found.source
                return found, impl.index
            self._take(found)
        settings = self._pipe.settings
        connect_s, first_byte_s, idle_s = (
            settings.connect_timeout_s,
            settings.first_byte_timeout_s,
            settings.idle_timeout_s,
        )
        targets = [Target(d, connect_s, first_byte_s, idle_s) for d in deployments]
        for impl in chain.select:
            targets = (await impl.run(call, targets)) if impl.is_async else impl.run(call, targets)
        return await self._attempt(targets)

    async def _attempt(self, targets: list[Target]) -> tuple[Reply, int]:
        try:
            attempt, reply = await self._loop.first_reply(targets)
        except (UpstreamError, Unavailable) as error:
            if isinstance(error, UpstreamError):
                self._source = "upstream"
            for impl in self._chain.rescue:
                rescued = (await impl.run(self.call, error)) if impl.is_async else impl.run(self.call, error)
                if rescued is not None:
                    self._error, self._source = error, rescued.source
                    return rescued, impl.index
            raise
        self._source = "upstream"
        if isinstance(reply.body, bytes):
            await self._loop.end(attempt, "ok")
        else:
            is_events = reply.is_event_stream
            reply.body = relay(self._loop, attempt, reply.body, self._timer, is_events=is_events)
        headers = reply.headers
        headers["x-hookline-deployment"] = attempt.deployment.id
        headers["x-hookline-attempts"] = str(len(self.call.attempts))
        if attempt.output_cap is not None:
            headers["x-hookline-output-capped"] = str(attempt.output_cap)
        return reply, OUTERMOST

    async def _edit(self, reply: Reply, maker: int) -> Reply:
        """`edit_reply` of the plugins listed before `maker`, and the layers of a streamed body."""
        taps: dict[int, list[Any]] = {}
        for impl in self._chain.edit_reply:
            if impl.index < maker:
                reply.taps = None
                reply = (await impl.run(self.call, reply)) if impl.is_async else impl.run(self.call, reply)
                if reply.taps:
                    taps[impl.index] = reply.taps
        if exposed := self.call.slots.get(EXPOSED_HEADERS):
            reply.headers.update(exposed)
        if not isinstance(reply.body, bytes):
            edits = {i.index: i.run for i in self._chain.edit_event if i.index < maker} if reply.is_event_stream else {}
            if taps or edits:
                order = sorted({*taps, *edits}, reverse=True)
                layers = [Layer(taps.get(index, []), edits.get(index)) for index in order]
                reply.body = edited(reply.body, self.call, layers)
        self._status = reply.status
        return reply

    async def _hand_over(self, reply: Reply) -> None:
        """Deliver; without its client a call that drains is read to its end."""
        body = reply.body
        try:
            if not self._is_client_gone:
                await self.deliver(reply)
        except ClientGone:
            self._is_client_gone = True
        except ApiError as error:
            self._error, self._outcome = error, "timeout" if _is_late(error) else "upstream_lost"
        except Exception as error:
            log.error("call %s: the reply could not be delivered", self.call.id, exc_info=error)
            self._outcome = "internal_error"
        finally:
            try:
                if self._is_client_gone and not isinstance(body, bytes) and self.call.on_disconnect == "drain":
                    await _drain(body)
            finally:
                await close_body(body)
        if self._is_client_gone:
            self._outcome = "client_gone"

    async def _reply_with_heartbeats(self) -> Reply:
        """The reply, or after `heartbeat_s` a stream of comments that becomes it."""
        pipe, call = self._pipe, self.call
        answering = asyncio.ensure_future(self._reply())
        self._timer.rebind(answering)
        try:
            await asyncio.wait({answering}, timeout=pipe.settings.heartbeat_s)
            if answering.done() or not call.is_stream:
                return await answering
        except BaseException:
            answering.cancel()
            await asyncio.wait({answering})
            raise
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        body = with_heartbeats(answering, call, pipe.settings.heartbeat_s, lambda: self._timer.rebind(self._task))
        return Reply(200, headers, body)

    def _take(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self._tickets.append(ticket)

    def _end_steps(self) -> Steps:
        """The call's tickets, last taken first, then `call_ended`."""
        result = self._loop.result(
            self._outcome,
            source=self._source,
            status=self._status,
            error=self._error,
            ended_at=self._pipe.clock.monotonic(),
        )
        yield from self._settlement.settle(self._tickets, result)
        for impl in self._chain.call_ended:
            pending = impl.run(self.call, result)
            if impl.is_async:
                yield pending


async def _drain(body: Any) -> None:
    try:
        async for _ in body:
            pass
    except ApiError:
        pass  # nobody is left to tell; the attempt has its error


def _is_late(error: ApiError) -> bool:
    return isinstance(error, UpstreamError) and error.kind == "deadline"


def _outcome_of(error: ApiError) -> Outcome:
    if isinstance(error, InternalError):
        return "internal_error"
    if _is_late(error):
        return "timeout"
    return "upstream_error" if isinstance(error, (UpstreamError, Unavailable)) else "rejected"
