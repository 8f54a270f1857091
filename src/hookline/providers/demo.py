"""Demo: a provider that answers everything by itself, offline, the same way each time.

Lives here: which call gets which answer, pace, and the faults a model's name asks for. Elsewhere: the names (demo_behaviours.py), what is said (demo_chat.py, demo_media.py, demo_objects.py), legacy completions
and responses, which are served by chat as on any chat-only server (bridge.py).
Idea: it fails like an upstream: with an error status it answers, with a timeout it waits as long as the target's timeout says, in the middle of a stream it breaks there. So retries, fallback and
breakers can be tried on a laptop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote

import orjson
from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.deployment import Deployment, Target
from hookline.errors import UpstreamError
from hookline.providers.demo_behaviours import BEHAVIOURS, LISTED, Behaviour, error_object, find_behaviour
from hookline.providers.demo_chat import Completion, compose, seed_of, to_events, to_object
from hookline.providers.demo_form import MAX_FORM_BYTES, Form, read_form
from hookline.providers.demo_media import embeddings, images, moderations, speech, transcript
from hookline.providers.demo_objects import DemoObjects
from hookline.reply import Reply

RETRY_AFTER_S = 1
_ANY_NAME = frozenset({"embeddings", "moderations", "relay"})
"""Endpoints whose answer is no text: there are no names for what they do, so `demo/embed` is as good as `demo/echo`."""


class DemoOptions(BaseModel):
    """`kind = "demo"`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chunk_interval_ms: float = Field(default=20.0, ge=0, le=60_000, description="Between two chunks of a stream.")
    slow_s: float = Field(default=5.0, ge=0, le=3600, description="How long `demo/slow` waits before it begins.")


class Clock(Protocol):
    """Unix seconds, for `created`."""

    def time(self) -> float: ...


class DemoProvider:
    """Implements `Provider`."""

    def __init__(self, name: str, options: DemoOptions, clock: Clock) -> None:
        self.name = name
        self.endpoints: frozenset[str] = frozenset({"chat", "embeddings", "moderations", "models", "relay"})
        self._options = options
        self._clock = clock
        self._objects = DemoObjects(self._run_batch_line)
        self._flaky_calls = 0

    async def send(self, call: Call, attempt: Attempt) -> Reply:
        """See `Provider.send`."""
        target = attempt.target
        model = target.deployment.model or call.model or ""
        if call.endpoint not in _ANY_NAME and self._is_misspelt(call.model or ""):
            return self._unknown_model(call.model or "")
        behaviour = find_behaviour(model)
        await self._begin(behaviour, target)
        failed = self._fail(behaviour, target.deployment)
        if failed is not None:
            return failed
        if call.endpoint == "chat":
            return await self._chat(call, attempt, behaviour, model)
        if behaviour.breaks is not None and behaviour.breaks != "no-done":
            await self._break(behaviour, target)
        return await self._answer(call, model)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _begin(self, behaviour: Behaviour, target: Target) -> None:
        waits_s = self._options.slow_s if behaviour.is_slow else behaviour.waits_s
        if waits_s is None:
            return
        limit_s = target.first_byte_timeout_s
        await asyncio.sleep(min(waits_s, limit_s))
        if waits_s > limit_s:
            _fail_with("first_byte_timeout", target.deployment, f"did not begin to answer within {limit_s:g} s")

    def _fail(self, behaviour: Behaviour, deployment: Deployment) -> Reply | None:
        fails_with = behaviour.fails_with
        if behaviour.is_flaky:
            self._flaky_calls += 1
            fails_with = 500 if self._flaky_calls % 2 else None
        if isinstance(fails_with, str):
            _fail_with(fails_with, deployment, "failed, as its name asks for")
        return _json_reply(fails_with, error_object(fails_with)) if fails_with is not None else None

    async def _break(self, behaviour: Behaviour, target: Target) -> None:
        """What a break in the middle of an answer is for one that comes whole."""
        if behaviour.breaks == "stall":
            await asyncio.sleep(target.idle_timeout_s)
            _fail_with("idle_timeout", target.deployment, f"sent nothing for {target.idle_timeout_s:g} s")
        _fail_with("reset", target.deployment, "closed the connection before the end of its reply")

    async def _chat(self, call: Call, attempt: Attempt, behaviour: Behaviour, model: str) -> Reply:
        completion = self._compose(call.payload or {}, behaviour, model, attempt.output_cap)
        if isinstance(completion, str):
            return _json_reply(400, error_object(400, completion, param="messages"))
        if not call.is_stream:
            if behaviour.breaks is not None and behaviour.breaks != "no-done":
                await self._break(behaviour, attempt.target)
            return _json_reply(200, to_object(completion))
        attempt.has_hidden_usage = not call.chat.wants_usage
        events = to_events(completion)
        if behaviour.breaks == "no-done":
            del events[-1]
        headers = CIMultiDict({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        return Reply(200, headers, self._play(events, behaviour, attempt.target))

    def _compose(
        self, payload: dict[str, Any], behaviour: Behaviour, model: str, cap: int | None = None
    ) -> Completion | str:
        created = int(self._clock.time())
        return compose(payload, behaviour.answer, model=model, created=created, cap=cap)

    async def _play(self, events: Sequence[bytes], behaviour: Behaviour, target: Target) -> AsyncIterator[bytes]:
        """One event after the other, at the set pace; in the middle, the fault."""
        interval_s = self._options.chunk_interval_ms / 1000
        middle = len(events) // 2 if behaviour.breaks in ("cut", "stall", "error") else -1
        for number, event in enumerate(events):
            if number and interval_s:
                await asyncio.sleep(interval_s)
            if number == middle:
                if behaviour.breaks == "error":
                    message = "the demo fails in the middle of its stream, as the model's name asks for"
                    yield b"data: %b\n\n" % orjson.dumps(error_object(500, message))
                    return
                await self._break(behaviour, target)
            yield event

    async def _answer(self, call: Call, model: str) -> Reply:
        """Everything but chat: by endpoint, else by path."""
        path = call.path.removeprefix("/v1/")
        body: dict[str, Any] | Form = call.payload or {}
        if call.upload is not None:
            form = await read_form(call.upload)
            if form is None:
                return _json_reply(413, error_object(413, f"the demo takes at most {MAX_FORM_BYTES} bytes"))
            body = form
        if call.endpoint == "models" or path == "models":
            return self._models(call)
        make = _BY_PATH.get(path) if call.method == "POST" else None
        if make is not None:
            return make(body, model, int(self._clock.time()))
        found = self._objects.handle(call.method, path, call.query, body, int(self._clock.time()))
        if isinstance(found.body, bytes):
            return Reply(found.status, {"content-type": "application/octet-stream"}, found.body)
        return _json_reply(found.status, found.body)

    def _models(self, call: Call) -> Reply:
        if call.path.strip("/") == "v1/models":
            return _json_reply(200, {"object": "list", "data": [self._model(f"{self.name}/{name}") for name in LISTED]})
        return _json_reply(200, self._model(unquote(call.path.removeprefix("/v1/models/"))))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "hookline"}

    def _is_misspelt(self, asked: str) -> bool:
        """`demo/lorme`: a name asked of the demo itself. Any other name is somebody's real model, and is answered like `echo`."""
        name = asked.removeprefix(f"{self.name}/")
        return name != asked and name not in BEHAVIOURS and find_behaviour(name) is BEHAVIOURS["echo"]

    def _unknown_model(self, asked: str) -> Reply:
        near = get_close_matches(asked.removeprefix(f"{self.name}/"), LISTED, 3, 0.4) or LISTED
        message = f"the demo has no model of that name; it has {', '.join(f'{self.name}/{name}' for name in near)}"
        return _json_reply(404, error_object(404, message, param="model", code="model_not_found"))

    def _run_batch_line(self, path: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        model = str(payload.get("model", "echo"))
        behaviour = find_behaviour(model)
        if isinstance(behaviour.fails_with, int):
            return behaviour.fails_with, error_object(behaviour.fails_with)
        if path == "/v1/embeddings":
            made: dict[str, Any] | str = embeddings(payload, model=model)
        elif path == "/v1/chat/completions":
            completion = self._compose(payload, behaviour, model)
            made = completion if isinstance(completion, str) else to_object(completion)
        else:
            made = f"the demo runs no batches of {path}"
        return (400, error_object(400, made)) if isinstance(made, str) else (200, made)


def _embed(body: dict[str, Any] | Form, model: str, now: int) -> Reply:
    return _made(embeddings(_fields(body), model=model), "input")


def _moderate(body: dict[str, Any] | Form, model: str, now: int) -> Reply:
    return _made(
        moderations(_fields(body), model=model or "omni-moderation-latest", seed=seed_of(_fields(body))), "input"
    )


def _speak(body: dict[str, Any] | Form, model: str, now: int) -> Reply:
    text = _fields(body).get("input")
    if not isinstance(text, str) or not text:
        return _json_reply(400, error_object(400, '"input" must be a text', param="input"))
    return Reply(200, {"content-type": "audio/wav"}, speech(text))


def _transcribe(body: dict[str, Any] | Form, model: str, now: int) -> Reply:
    if not isinstance(body, Form) or not body.files:
        return _json_reply(400, error_object(400, 'send multipart/form-data with a part "file"', param="file"))
    _, file_name, content = body.files[0]
    content_type, made = transcript(file_name, len(content), body.fields.get("response_format", "json"))
    return Reply(200, {"content-type": content_type}, made) if isinstance(made, bytes) else _json_reply(200, made)


def _paint(body: dict[str, Any] | Form, model: str, now: int) -> Reply:
    fields = _fields(body)
    return _json_reply(200, images(fields, created=now, seed=seed_of(fields)))


_BY_PATH: dict[str, Callable[[dict[str, Any] | Form, str, int], Reply]] = {
    "embeddings": _embed,
    "moderations": _moderate,
    "audio/speech": _speak,
    "audio/transcriptions": _transcribe,
    "audio/translations": _transcribe,
    "images/generations": _paint,
    "images/edits": _paint,
    "images/variations": _paint,
}


def _fields(body: dict[str, Any] | Form) -> dict[str, Any]:
    return dict(body.fields) if isinstance(body, Form) else body


def _made(made: dict[str, Any] | str, param: str) -> Reply:
    return _json_reply(400, error_object(400, made, param=param)) if isinstance(made, str) else _json_reply(200, made)


def _json_reply(status: int, value: object) -> Reply:
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 429 else None
    return Reply.from_json(value, status=status, headers=headers, source="upstream")


def _fail_with(kind: str, deployment: Deployment, what: str) -> NoReturn:
    raise UpstreamError(f"{deployment.id} {what}", kind=kind, is_written=kind != "connect")
