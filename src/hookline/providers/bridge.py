"""Bridge: legacy completions and responses, served by a deployment that only chats.

Lives here: `Bridged`, which is put around every provider, and when it acts. Elsewhere: the translations (completions_as_chat.py, responses_request.py, responses_reply.py, responses_stream.py), joining the
answers to several prompts (prompts.py), sending (the provider itself).
Idea: a bridged call is a chat call with the same id, headers and principal, sent by the same provider in the same attempt; only the request on the way in and the answer on the way out are rewritten.

| endpoint | by chat, if |
|---|---|
| completions | the provider lacks it, the deployment says `mode = "chat"`, or the name is a known chat model and `mode` is not `"completions"` |
| responses | the provider lacks it, or the deployment says `mode = "chat"` |"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from hookline.attempt import Attempt, Provider
from hookline.call import Call
from hookline.deployment import Deployment
from hookline.errors import BadRequest, UpstreamError
from hookline.providers import completions_as_chat, responses_reply, responses_request
from hookline.providers.chat_models import is_known_chat_model
from hookline.providers.event_reader import TranslatedBody, read_events
from hookline.providers.prompts import join_streams, send_all
from hookline.providers.responses_stream import ResponsesStream
from hookline.providers.untranslatable import JsonObject, Untranslatable
from hookline.reply import Reply
from hookline.transport import serialize_event

BRIDGED = frozenset({"completions", "responses"})


class Bridged:
    """Implements `Provider` around another one."""

    __slots__ = ("_provider", "endpoints", "name")

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.name = provider.name
        self.endpoints = provider.endpoints | BRIDGED if "chat" in provider.endpoints else provider.endpoints

    def send(self, call: Call, attempt: Attempt) -> Coroutine[Any, Any, Reply]:
        """See `Provider.send`."""
        endpoint = call.endpoint
        if endpoint in BRIDGED and needs_chat(endpoint, self._provider.endpoints, attempt.target.deployment):
            return self._complete(call, attempt) if endpoint == "completions" else self._respond(call, attempt)
        return self._provider.send(call, attempt)  # the provider's own coroutine: no frame of ours around it

    async def aclose(self) -> None:
        """Close the provider."""
        await self._provider.aclose()

    async def _complete(self, call: Call, attempt: Attempt) -> Reply:
        deployment = attempt.target.deployment
        try:
            chats = completions_as_chat.to_chat(call.payload or {}, upstream_model=deployment.model or None)
        except Untranslatable as error:
            raise _refusal(error) from error
        model = call.model or deployment.model
        try:
            replies = await send_all(self._provider, [chat_call(call, chat) for chat in chats], attempt)
        except BadRequest as error:
            raise in_own_words(error, completions_as_chat.CHAT_FIELDS) from error
        failed = next((reply for reply in replies if reply.status >= 400), None)
        if failed is not None:
            return failed
        joined = replies[0]
        if any(reply.is_event_stream for reply in replies):
            n = (call.payload or {}).get("n") or 1
            bodies = [reply.body for reply in replies]
            joined.body = TranslatedBody(join_streams(replies, deployment, model=model, choices=n), *bodies)
        else:
            joined.replace_json(completions_as_chat.from_chat([_object(r, deployment) for r in replies], model=model))
        return joined

    async def _respond(self, call: Call, attempt: Attempt) -> Reply:
        request = call.payload or {}
        deployment = attempt.target.deployment
        try:
            chat = responses_request.to_chat(request, upstream_model=deployment.model or None)
        except Untranslatable as error:
            raise _refusal(error) from error
        # The provider asks for the usage by itself, and knows what to do about a server that refuses the option.
        chat.pop("stream_options", None)
        try:
            reply = await self._provider.send(chat_call(call, chat), attempt)
        except BadRequest as error:
            raise in_own_words(error, responses_request.CHAT_FIELDS) from error
        attempt.has_hidden_usage = False  # it becomes part of response.completed
        if reply.status >= 400:
            return reply
        if not isinstance(reply.body, bytes):
            reply.body = TranslatedBody(_response_events(reply.body, request, deployment), reply.body)
        else:
            reply.replace_json(responses_reply.from_chat(_object(reply, deployment), request))
        return reply


def in_own_words(error: BadRequest, fields: Mapping[str, str]) -> BadRequest:
    """A refusal of the chat call, with the names of the client's own request. `fields`: pattern of a chat field -> what the client calls it.

    A message has no fixed place in the client's request, so its path stays in the text."""
    param, text = error.param, error.message
    if param is None:
        return error
    if param.startswith("messages"):
        return BadRequest(f'"{fields["messages"]}" as chat: {text}', param=fields["messages"])
    for pattern, own in fields.items():
        param = re.sub(f"^{pattern}", own, param)
        if pattern.isidentifier():  # advice names other fields than the refused one
            text = re.sub(rf"\b{pattern}\b", own, text)
    return BadRequest(text.replace(f'"{error.param}"', f'"{param}"'), param=param)


def needs_chat(endpoint: str, endpoints: frozenset[str], deployment: Deployment) -> bool:
    """Whether a call of this endpoint is sent as chat."""
    if "chat" not in endpoints:
        return False
    if endpoint not in endpoints or deployment.mode == "chat":
        return True
    return endpoint == "completions" and deployment.mode is None and is_known_chat_model(deployment.model)


def chat_call(call: Call, chat: JsonObject) -> Call:
    """The call as a chat completion: who asks, when and with what headers stays."""
    derived = Call(
        id=call.id,
        method="POST",
        path="/v1/chat/completions",
        endpoint="chat",
        headers=call.headers,
        started_at=call.started_at,
        started_time=call.started_time,
        surface=call.surface,
        principal=call.principal,
    )
    derived.deadline, derived.tags, derived.remote = call.deadline, call.tags, call.remote
    derived.set_json(orjson.dumps(chat), chat)
    return derived


async def _response_events(
    body: AsyncIterator[bytes], request: JsonObject, deployment: Deployment
) -> AsyncGenerator[bytes, None]:
    stream = ResponsesStream(request)
    async with aclosing(read_events(body, deployment.id)) as events:
        async for event in events:
            if event.comment:
                yield event.comment
                continue
            data = event.data or {}
            if not stream.has_begun and data.get("error"):
                yield b"data: %b\n\n" % orjson.dumps(data)  # for the pipeline: it still can answer with a status
                return
            written = stream.done() if event.is_done else stream.feed(data)
            if written:
                yield _serialize(written)
    if written := stream.end():
        yield _serialize(written)


def _serialize(events: list[JsonObject]) -> bytes:
    return b"".join(serialize_event(orjson.dumps(event), event=event["type"]) for event in events)


def _object(reply: Reply, deployment: Deployment) -> JsonObject:
    value = reply.json()
    if not isinstance(value, dict):
        raise UpstreamError(f"{deployment.id} answered {reply.status} with what is no chat completion", kind="garbage")
    return value


def _refusal(error: Untranslatable) -> BadRequest:
    return BadRequest(str(error), param=error.param)
