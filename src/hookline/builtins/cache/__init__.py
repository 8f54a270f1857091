"""Response cache: the same question gets the same answer, without an upstream.

Lives here: what happens in which hook. Elsewhere, one decision per file: what may be cached (wishes.py), the key (key.py, meaning.py), what is kept (recording.py, entry.py, echo.py),
a stream as a plain reply and the other way round (assemble.py, disassemble.py), its pace (replay.py), embeddings.py, refresh.py, purge.py. Where entries live: `host.replies`; calls
in flight: `host.flights`; who sees the status: logging.py, metrics.py.
Idea: the key is made of everything that can change the answer; what comes back is what was relayed, as the plugins listed after this one left it. `Question` is what one call asks of
the cache: made once, read by everything later.

Calls in flight: equal calls are one upstream call (`coalesce`), the followers read along. Who asks anew (`no-cache`) does not follow. An answer of another form can't be read along:
its end is waited for, and what was kept of it is told in this call's form."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hookline import (
    CACHE_STATUS,
    RESERVE_FOR_FOLLOWER,
    AddCommand,
    AddRoute,
    ApiError,
    BadRequest,
    Call,
    FlightRules,
    Host,
    Lead,
    Rejected,
    Reply,
    Result,
    Slot,
    Unavailable,
    hookimpl,
)
from hookline.builtins.cache import embeddings
from hookline.builtins.cache.echo import echo_of, form_in_flight
from hookline.builtins.cache.entry import Entry, body_for, form_of_reply, judge, read_entry, usage_object
from hookline.builtins.cache.event_stream import Inexact
from hookline.builtins.cache.key import Form, cache_key, form_of, is_read_alike, item_keys
from hookline.builtins.cache.meaning import Meanings
from hookline.builtins.cache.options import CacheOptions
from hookline.builtins.cache.purge import Purge, tags_of
from hookline.builtins.cache.recording import Recording, is_answer
from hookline.builtins.cache.refresh import EXPECTED_KEY, Refresher
from hookline.builtins.cache.replay import at_first_pace, at_once, marks_of
from hookline.builtins.cache.wishes import Wishes, read_wishes

__all__ = ["CacheOptions", "Plugin"]

KEYS_TOLD_MAX = 16
"""Of an embeddings reply; more are not told."""
ASSEMBLED_MAX, ASSEMBLED_BYTES_MAX = 256, 16 * 1024
"""How many plain replies made of streams are kept beside their entries, and the longest of them: 4 MiB together."""
RESCUED_STATUSES = frozenset({401, 403, 404, 408, 409, 429})
"""Beside 5xx: what an upstream says of itself or of our key. 400 and the like are about the request: its author must read them."""


class NotCached(ApiError):
    status, type = 504, "invalid_request_error"


@dataclass(slots=True)
class Question:
    """What one call asks of the cache. `inputs`: of an embeddings call, each with its key in `keys`; else there is one key."""

    key: bytes
    keys: Sequence[bytes]
    inputs: Sequence[Any] | None
    form: Form
    model: str | None
    options: CacheOptions
    wishes: Wishes

    def told_keys(self) -> str | None:
        """For `x-hookline-cache-key`."""
        if self.inputs is None:
            return self.key.hex()
        return ",".join([key.hex() for key in self.keys]) if len(self.keys) <= KEYS_TOLD_MAX else None


QUESTION: Slot[Question] = Slot("cache_question")
FALLBACK: Slot[Reply] = Slot("cache_fallback")
"""An old answer, for `rescue`."""
RECORDING: Slot[Recording] = Slot("cache_recording")
LEAD: Slot[Lead] = Slot("cache_lead")


class Plugin:
    """The response cache."""

    Options = CacheOptions
    supports_dry_run = True
    needs_shared_state = True
    """Else a purge would reach one worker of several."""

    def __init__(self, options: CacheOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._host = host
        self._replies = host.replies
        self._flights = host.flights
        self._clock = host.clock
        self._meanings = Meanings(host)
        self._refresher = Refresher(host)
        self._assembled: dict[tuple[bytes, float, int], bytes] = {}
        self._flight_rules: dict[int, FlightRules] = {}
        """By the largest entry, which may differ per model."""

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        add("DELETE", "/admin/cache", Purge(self._host).handle)

    @hookimpl
    def register_commands(self, add: AddCommand) -> None:
        from hookline.builtins.cache.commands import make_commands  # typer is for the command line only

        add("cache", make_commands(Purge(self._host), self._host.replies))

    @hookimpl
    async def lookup(self, call: Call) -> Reply | Lead | None:
        options: CacheOptions = self._options_by_model.get(call.model or "", self._options)
        wishes = read_wishes(call, options)
        may_serve, may_store, max_age_s, _, must_hit = wishes
        if not may_store or not is_read_alike(call):
            call[CACHE_STATUS] = "bypass"
            call.note(
                "cache",
                "bypass",
                "only calls of temperature 0 and embeddings are cached, or what asks for it, as the options say",
            )
            if "only-if-cached" in call.headers.get("cache-control", "").lower():
                raise Rejected(_not_cached("this call can't be cached"))
            return None
        question = self._ask(call, options, wishes)
        call[QUESTION] = question
        expected = call.slots.get(EXPECTED_KEY)
        if expected is not None and expected != question.key:
            self._host.log.warning('cache: "%s" is not asked anew: its request is edited anew each time', call.model)
            raise Rejected(BadRequest("not the request whose answer is to be asked anew"))
        may_join = options.coalesce and may_serve and max_age_s != 0 and not call.is_dry_run
        # Where other processes may lead, looking and claiming go one way together.
        if may_serve and not (may_join and self._flights.is_shared and not must_hit):
            try:
                reply = await self._find(call, question)
            except Unavailable:
                call[CACHE_STATUS] = "bypass"
                return None
            if reply is not None:
                return reply
        if must_hit:
            raise Rejected(_not_cached("no answer is cached"))
        call[CACHE_STATUS] = "miss"
        if not may_join:
            return None
        return await self._board(call, question)

    @hookimpl
    def rescue(self, call: Call, error: ApiError) -> Reply | None:
        """An old answer rather than none."""
        reply: Reply | None = call.slots.get(FALLBACK)
        status = error.reply_status
        if reply is None or not (status >= 500 or status in RESCUED_STATUSES):
            return None
        reply.source = "rescue"
        reply.headers["x-hookline-rescue"] = "stale"
        call[CACHE_STATUS] = "stale"
        call.note("cache", "stale", f"no provider answered; an answer of {reply.headers['age']} s ago")
        return reply

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        status = call.slots.get(CACHE_STATUS)
        if status is None:
            return reply
        lead = call.slots.get(LEAD)
        is_read_along = lead is not None and lead.begin(reply, call.attempts[-1] if call.attempts else None)
        reply.headers["x-hookline-cache"] = status
        question = call.slots.get(QUESTION)
        if question is not None and reply.source == "upstream" and reply.status == 200 and is_answer(reply):
            options = question.options
            monotonic = self._clock.monotonic if options.replay == "first_pace" else None
            max_bytes = options.max_entry_bytes * (1 if question.inputs is None else len(question.inputs))
            has_same = is_read_along and monotonic is None and question.inputs is None
            call[RECORDING] = Recording(reply, max_bytes, monotonic=monotonic, lead=lead if has_same else None)
            if (told := question.told_keys()) is not None:
                reply.headers["x-hookline-cache-key"] = told
        return reply

    @hookimpl
    def call_ended(self, call: Call, result: Result) -> None:
        recording = call.slots.get(RECORDING)
        if recording is not None and recording.may_be_kept(call.attempts):
            self._keep(call, call[QUESTION], recording, result)
        if (lead := call.slots.get(LEAD)) is not None:
            lead.close()

    def _ask(self, call: Call, options: CacheOptions, wishes: Wishes) -> Question:
        name, meaning = self._meanings.find(call.model or "")
        is_shared, headers = options.scope == "shared", options.headers_in_key
        key = cache_key(call, is_shared=is_shared, model=name, meaning=meaning, headers=headers)
        inputs = embeddings.inputs_of(call)
        keys = [key]
        if inputs is not None:
            keys = item_keys(call, inputs, is_shared=is_shared, model=name, meaning=meaning, headers=headers)
        return Question(key, keys, inputs, form_of(call), name, options, wishes)

    async def _find(self, call: Call, question: Question) -> Reply | None:
        """A kept answer, as a reply to this call. Raises Unavailable."""
        if question.inputs is not None:
            return self._answer_inputs(call, question, await self._replies.get_many(question.keys))
        kept = await self._replies.get(question.key)
        entry = read_entry(kept) if kept is not None else None
        if entry is None:
            return None
        is_paced = question.options.replay == "first_pace" and bool(entry.marks)
        age_s = self._age(entry.stored_at)
        if judge(age_s, question.wishes, question.options) is None:
            return None
        try:
            body = self._body(entry, call, question, is_paced=is_paced)
        except Inexact:
            call.note("cache", "miss", f"an answer is kept, and can't be told as {question.form}")
            return None
        if question.form == "json":
            assert isinstance(body, bytes)
            content_type = entry.content_type if entry.form == "json" else "application/json"
            reply = Reply(200, {"content-type": content_type}, body, source="cache")
            return self._serve(call, question, age_s, reply, entry.made_by)
        content_type = entry.content_type if entry.form != "json" else "text/event-stream; charset=utf-8"
        events = b"".join(body) if isinstance(body, list) else body
        if is_paced:
            marks = marks_of(body, entry.marks[-1][0]) if isinstance(body, list) else entry.marks
            told = at_first_pace(events, marks, question.options.replay_max_s)
        else:
            told = at_once(events)
        reply = Reply(200, {"content-type": content_type}, told, source="cache")
        return self._serve(call, question, age_s, reply, entry.made_by)

    def _body(self, entry: Entry, call: Call, question: Question, *, is_paced: bool) -> bytes | list[bytes]:
        """The body for this call; a stream that was told as a plain reply once is not put together again. Raises Inexact."""
        if question.form != "json" or entry.form == "json" or call.endpoint == "responses":
            return body_for(entry, call, question.form, is_paced=is_paced)
        known, name = self._assembled, (question.key, entry.stored_at, hash(entry.body))
        body = known.get(name)
        if body is None:
            found = body_for(entry, call, question.form, is_paced=is_paced)
            assert isinstance(found, bytes)
            body = found
            if len(body) <= ASSEMBLED_BYTES_MAX:
                if len(known) >= ASSEMBLED_MAX:
                    del known[next(iter(known))]
                known[name] = body
        return body

    def _answer_inputs(self, call: Call, question: Question, kept: Sequence[bytes | None]) -> Reply | None:
        """The vectors of all inputs, or nothing."""
        items = []
        for one in kept:
            item = embeddings.read_item(one) if one is not None else None
            if item is None:
                return None
            items.append(item)
        oldest = min(items, key=lambda item: item.stored_at)
        age_s = self._age(oldest.stored_at)
        if judge(age_s, question.wishes, question.options) is None:
            return None
        headers = {"content-type": oldest.content_type}
        reply = Reply(200, headers, embeddings.join(items), source="cache")
        return self._serve(call, question, age_s, reply, oldest.made_by)

    def _serve(self, call: Call, question: Question, age_s: float, reply: Reply, made_by: str) -> Reply | None:
        """The reply, if its age will do; one that is only good as a fallback is laid aside."""
        freshness = judge(age_s, question.wishes, question.options)
        headers = reply.headers
        headers["x-hookline-cache"] = "hit" if freshness == "hit" else "stale"
        if made_by:
            headers["x-hookline-deployment"] = made_by
        headers["age"] = str(int(age_s))
        if (told := question.told_keys()) is not None:
            headers["x-hookline-cache-key"] = told
        if freshness == "fallback":
            call[FALLBACK] = reply
            return None
        assert freshness is not None
        call[CACHE_STATUS] = freshness
        call.note("cache", freshness, f"answered {headers['age']} s ago")
        may_refresh = age_s < question.options.ttl_s + question.options.stale_s and not question.wishes.must_hit
        if freshness == "stale" and may_refresh and not call.is_dry_run:
            self._refresher.start(call, question.key)
        return reply

    def _age(self, stored_at: float) -> float:
        return max(0.0, self._clock.time() - stored_at)

    async def _board(self, call: Call, question: Question) -> Reply | Lead | None:
        """Lead all calls like this one, or get the reply of who does."""
        options = question.options
        rules = self._flight_rules.get(options.max_entry_bytes) or self._make_flight_rules(options.max_entry_bytes)
        reserve = self._host.offers.get(RESERVE_FOR_FOLLOWER) if options.coalesce_pay == "each" else None
        try:
            found = await self._flights.board(
                call,
                question.key,
                rules,
                form=form_in_flight(call, question.form),
                look=partial(self._find, call, question),
                reserve=reserve,
            )
        except ApiError as error:
            if (rescued := self.rescue(call, error)) is not None:
                return rescued
            found = Reply.from_error(error)
            found.source = "coalesced"
        if isinstance(found, Lead):
            call[LEAD] = found
        elif found is not None and found.source == "coalesced":
            call[CACHE_STATUS] = "coalesced"
            call.note("cache", "coalesced", "the reply of an equal call that came before")
            if found.status < 400:
                found.headers["x-hookline-cache"] = "hit"
                found.headers["age"] = "0"
        return found

    def _make_flight_rules(self, max_entry_bytes: int) -> FlightRules:
        rules = self._flight_rules[max_entry_bytes] = FlightRules("cache", "coalesced", max_entry_bytes)
        return rules

    def _keep(self, call: Call, question: Question, recording: Recording, result: Result) -> None:
        body, options, now = recording.body, question.options, self._clock.time()
        assert body is not None
        tags = tags_of(None if options.scope == "shared" else call.principal.tenant, question.model)
        longest = options.max_entry_bytes + 4096
        made_by = result.attempt.deployment.id if result.attempt is not None else ""
        if question.inputs is not None:
            reply = Reply(200, {}, body).json()
            values = embeddings.split(reply, question.inputs, recording.content_type, now, made_by)
            if values is None:
                return
            small = {k: v for k, v in zip(question.keys, values, strict=True) if len(v) <= longest}
            pending = self._replies.put_many(small, ttl_s=options.kept_s, tags=tags)
        else:
            form = form_of_reply(call, is_stream=recording.is_stream, form=question.form)
            marks = recording.marks
            if options.replay == "first_pace" and not recording.is_stream:
                marks = [(round((self._clock.monotonic() - call.started_at) * 1000), len(body))]
            usage = usage_object(call.endpoint, result.usage) if form == "events" else None
            value = Entry(recording.content_type, form, body, now, usage, marks, echo_of(call), made_by).to_bytes()
            if len(value) > longest:
                return
            pending = self._replies.put(question.key, value, ttl_s=options.kept_s, tags=tags)
        if pending is not None:
            self._host.spawn("store", _wait_for(pending))


def _not_cached(why: str) -> NotCached:
    return NotCached(f"{why}, and `only-if-cached` forbids to ask an upstream", code="not_cached")


async def _wait_for(pending: Awaitable[None]) -> None:
    await pending
