"""The pipeline: one call through the hooks, the attempts and back to the client. The only way to a provider.

Lives here: `run(call)`: the hooks in order, the way of every error, the end of a call. Elsewhere: the hooks' contracts (hookspecs.py), the attempt loop
(attempts.py), a streamed body (relay.py), the client (delivery.py), settling (settling.py).
Idea: whatever happens, a call ends once: attempts end, tickets settle, `call_ended` is told. Everything that was taken is taken inside `_Run.go`.

State          | goes on to                                             | other ways out, with their outcome
authenticating | loading: somebody vouched, or nobody is asked          | rejected 401; internal_error (a plugin broke)
loading        | preparing: the body is parsed                          | rejected 400, 408, 413, 415; client_gone
preparing      | routing: the request is frozen                         | rejected; internal_error
routing        | admitting: the name means deployments                  | rejected 400, 403, 404
admitting      | looking up: all tickets taken                          | rejected 429; internal_error; timeout
looking up     | replying (cache, replay, coalesced), or selecting      | rejected; a plugin that breaks counts as None
selecting      | attempting                                             | rejected 400; internal_error
attempting     | replying: a target began its answer                    | upstream_error, rescued or not; rejected (budget); timeout; client_gone
replying       | delivering: edited                                     | internal_error (an edit broke: 500, nothing has left)
delivering     | ended: ok                                              | upstream_lost (error event, no clean end); rejected, internal_error (an edit)
ended          |                                                        | from every state: attempts, tickets, call_ended, once
Wherever something is awaited, which is everywhere but in routing, a call may also end in client_gone, timeout (504) or shutdown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from hookline.attempt import Outcome, Provider, Ticket, outcome_of
from hookline.attempts import AttemptLoop
from hookline.call import Call
from hookline.call_timer import SharedDeadline
from hookline.catalog import Catalog
from hookline.chain import Chain
from hookline.cost_on_wire import tell_cost
from hookline.deadline import deadline_error
from hookline.delivery import Deliver, Delivery, Pumps
from hookline.deployment import Deployment, Target
from hookline.errors import ApiError, InternalError, Rejected, Unavailable, UpstreamError
from hookline.explaining import explaining, unasked
from hookline.guards import Waiting
from hookline.heartbeats import reply_with_heartbeats
from hookline.host import Clock, Metrics
from hookline.own_calls import IN_BACKGROUND
from hookline.peek import close_body
from hookline.pipeline_settings import PipelineSettings
from hookline.principal import ANONYMOUS
from hookline.relay import Layer, RelayedBody, with_layers
from hookline.reply import Reply
from hookline.results import named, with_share
from hookline.settling import Settlement, Steps
from hookline.slots import EXPOSED_HEADERS

log = logging.getLogger("hookline.pipeline")

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
        self.pumps = Pumps(self.settings.max_pumps)
        self.deadline: SharedDeadline | None = None
        self._detached: set[asyncio.Task[None]] = set()
        self._dry_chain = chain.without(p.name for p in chain.plugins if not p.supports_dry_run)
        self._explaining = explaining(self._dry_chain)

    async def run(self, call: Call, deliver: Deliver) -> None:
        """Take `call` through the chain and hand its reply to `deliver`. Every outcome is a Reply; raises only if cancelled from outside."""
        chain = self.chain if self.calls % TIMED_EVERY else self.chain.timed  # the first call, too
        self.calls += 1
        if call.is_dry_run:
            chain = self._explaining if call.is_explained else self._dry_chain
            for name in unasked(self.chain):
                call.note(name, "not asked", "the plugin can't answer a dry run")
        self.running += 1
        try:
            await _Run(self, chain, call, deliver).go()
        finally:
            self.running -= 1

    def find_deadline(self) -> SharedDeadline:
        """The deadline of calls that have none of their own; the pipeline belongs to the loop of its first call."""
        self.deadline = SharedDeadline(asyncio.get_running_loop(), self.settings.total_timeout_s)
        return self.deadline

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

    __slots__ = ("_chain", "_delivery", "_error", "_layers", "_loop", "_outcome", "_pipe", "_settlement", "_source", "_status",
                 "_task", "_tickets", "_timer", "call")  # fmt: skip

    def __init__(self, pipe: Pipeline, chain: Chain, call: Call, deliver: Deliver) -> None:
        self._pipe = pipe
        self._chain = chain
        self.call = call
        self._settlement = Settlement(
            call, detach=pipe.detach, timeout_s=pipe.settings.settle_timeout_s, failures=pipe.unsettled
        )
        self._loop = AttemptLoop(
            call, chain=chain, providers=pipe.providers, clock=pipe.clock, settlement=self._settlement
        )
        deadline = pipe.deadline or pipe.find_deadline()
        task = asyncio.current_task(deadline.loop)
        assert task is not None
        self._task = task
        self._timer = deadline.start(task)
        self._delivery = Delivery(call, deliver, task=task, pumps=pipe.pumps)
        self._tickets: list[Ticket] = []
        self._layers: dict[int, Layer] = {}
        self._outcome: Outcome = "ok"
        self._error: ApiError | None = None
        self._source: Any = "local"
        self._status: int | None = None

    async def go(self) -> None:
        call, settings, delivery = self.call, self._pipe.settings, self._delivery
        call._timer = self._timer
        call.on_disconnect = settings.on_disconnect
        call.client_closed = delivery.client_closed
        try:
            if settings.heartbeat_s > 0:
                reply = await reply_with_heartbeats(self._reply, call, settings.heartbeat_s, self._timer)
            else:
                reply = await self._reply()
            await delivery.hand_over(reply)
            self._outcome, self._error = delivery.outcome or self._outcome, delivery.error or self._error
        except asyncio.CancelledError as error:
            error.__traceback__ = None  # `_refuse` is in it and has the error: a cycle of 50 objects
            if self._timer.was_cancelled_for("deadline"):
                self._outcome = "timeout"
            elif delivery.is_cut and self._task.uncancel() == 0:
                self._outcome = delivery.outcome or "client_gone"
            else:
                self._outcome = "shutdown"
                raise
        finally:
            call.client_closed = None
            self._timer.stop()
            delivery.stop()
            for layer in self._layers.values():
                layer.end(False)
            try:
                if (pending := self._loop.end_all(self._outcome)) is not None:
                    await pending
            finally:
                if (pending := self._settlement.run(self._end_steps())) is not None:
                    await pending

    async def _reply(self) -> Reply:
        """The reply to hand over, edited, whatever happened."""
        maker = OUTERMOST
        try:
            reply, maker = await self._answer()
        except (Exception, asyncio.CancelledError) as error:
            reply = self._refuse(error)
            await self._settlement.finish()
        try:
            return await self._edit(reply, maker)
        except (Exception, asyncio.CancelledError) as error:
            await close_body(reply.body)
            reply = self._refuse(error)
            self._source, self._status = "local", reply.status
            return reply

    def _refuse(self, error: BaseException) -> Reply:
        """An error as a reply; notes the outcome. A cancellation that is not the deadline's goes on."""
        if isinstance(error, asyncio.CancelledError):
            if not self._timer.was_cancelled_for("deadline"):
                raise error
            error = deadline_error(self.call, self._timer)
        if is_rejected := isinstance(error, Rejected):
            error = error.error
        if not isinstance(error, ApiError):
            log.error("call %s failed: %s: %s", self.call.id, type(error).__name__, error, exc_info=error)
            error = InternalError("the gateway failed; see its log")
        self._error, self._outcome = error, outcome_of(error)
        if is_rejected and self._outcome == "upstream_error":
            self._outcome = "rejected"  # a plugin's own 503: no upstream was asked
        if isinstance(error, UpstreamError) and error.upstream_body is not None:
            reply = Reply(error.reply_status, error.upstream_headers, error.upstream_body)
        else:
            reply = Reply.from_error(error)
        return named(reply, self.call, self.call.attempts[-1] if self.call.attempts else None)

    async def _answer(self) -> tuple[Reply, int]:
        """Hooks 1 to 9: a reply, and the place in the chain of who made it."""
        call, chain, catalog = self.call, self._chain, self._pipe.catalog
        if call.principal is ANONYMOUS:
            for impl in chain.authenticate:
                principal = impl.run(call)
                if type(principal) is Waiting:
                    principal = await principal
                if principal is not None:
                    call.principal = principal
                    break
        if call.load is not None:
            await call.load(call)
        for impl in chain.prepare:
            prepared = impl.run(call)
            if type(prepared) is Waiting:
                await prepared
        call.freeze()
        if call.deadline is not None:
            self._timer.set_deadline(call.deadline - self._pipe.clock.monotonic())
        deployments: tuple[Deployment, ...] = ()
        if call.local is None:
            name = call.model
            deployments = catalog.resolve(name, call) if name is not None else catalog.resolve_without_model(call)
            catalog.check_allowed(call.principal, name, call)
        for impl in chain.admit:
            ticket = impl.run(call)
            if type(ticket) is Waiting:
                ticket = await ticket
            if ticket is not None:
                self._tickets.append(ticket)
        if call.local is not None:
            return await call.local(call), OUTERMOST
        for impl in chain.lookup:
            found = impl.run(call)
            if type(found) is Waiting:
                found = await found
            if isinstance(found, Reply):
                self._source = found.source
                self._outcome = "ok" if found.status < 400 else "upstream_error"
                self._tickets += (found.ticket,) if found.ticket is not None else ()
                return named(found, call, None), impl.index
            if found is not None:
                self._tickets.append(found)
        targets = [Target(deployment) for deployment in deployments]
        for impl in chain.select:
            chosen = impl.run(call, targets)
            targets = (await chosen) if type(chosen) is Waiting else chosen
        return await self._attempt(targets)

    async def _attempt(self, targets: list[Target]) -> tuple[Reply, int]:
        if self.call.is_dry_run:
            return await self._loop.ask(targets), OUTERMOST
        try:
            attempt, reply = await self._loop.first_reply(targets)
        except (UpstreamError, Unavailable) as error:
            if isinstance(error, UpstreamError):
                self._source = "upstream"
            for impl in () if IN_BACKGROUND in self.call.slots else self._chain.rescue:
                rescued = impl.run(self.call, error)
                if type(rescued) is Waiting:
                    rescued = await rescued
                if rescued is not None:
                    self._error, self._source = error, rescued.source
                    self._outcome = "ok" if rescued.status < 400 else outcome_of(error)
                    return named(rescued, self.call, None), impl.index
            raise
        self._source = "upstream"
        if isinstance(reply.body, bytes):
            if (pending := self._loop.end(attempt, "ok")) is not None:
                await pending
        else:
            is_events = reply.is_event_stream
            reply.body = RelayedBody(self._loop, attempt, reply.body, self._timer, is_events=is_events)
        return named(reply, self.call, attempt), OUTERMOST

    async def _edit(self, reply: Reply, maker: int) -> Reply:
        """`edit_reply` of the plugins listed before `maker`, and the layers of a streamed body."""
        layers = self._layers
        for impl in self._chain.edit_reply:
            if impl.index < maker:
                reply.taps = None
                edited_reply = impl.run(self.call, reply)
                reply = (await edited_reply) if type(edited_reply) is Waiting else edited_reply
                if reply.taps:
                    layers[impl.index] = Layer(impl.plugin, reply.taps)
        if exposed := self.call.slots.get(EXPOSED_HEADERS):
            reply.headers.update(exposed)
        if not isinstance(reply.body, bytes):
            if reply.is_event_stream:
                for impl in self._chain.edit_event:
                    if impl.index < maker:
                        layers.setdefault(impl.index, Layer(impl.plugin, [])).edit = impl.run
            if layers:
                reply.body = with_layers(reply.body, self.call, layers)
        tell_cost(reply, self.call, self._loop.cost_nanousd)
        self._status = reply.status
        return reply

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
        result = with_share(self.call, result)
        for impl in self._chain.call_ended:
            pending = impl.run(self.call, result)
            if type(pending) is Waiting:
                yield pending
