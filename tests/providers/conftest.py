"""What the tests of several providers share: the vendors' own types as judges of what we write, a scripted upstream, calls and attempts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParams
from multidict import CIMultiDict
from pydantic import BaseModel, TypeAdapter

from hookline import ENDPOINTS, Attempt, Call, Deployment, Target
from hookline.providers.anthropic_request import to_anthropic
from hookline.providers.untranslatable import Untranslatable
from hookline.testing.upstream import ScriptedUpstream

_ANTHROPIC_REQUEST = TypeAdapter(MessageCreateParams)


def _read_out(value: Any) -> Any:
    """Pydantic checks an `Iterable` only while it is read, so read all of it."""
    if isinstance(value, BaseModel):
        return {"matched a reply type": type(value).__name__}
    if isinstance(value, dict):
        return {key: _read_out(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return [_read_out(item) for item in value]


@pytest.fixture
def assert_anthropic_request() -> Callable[[dict[str, Any]], None]:
    """Fails unless the `anthropic` package's types know every member of the request, with its type.

    Its types no longer list the sampling fields, which models up to Claude 4.6 still take; these two are set aside."""

    def check(request: dict[str, Any]) -> None:
        typed = {key: value for key, value in request.items() if key not in ("temperature", "top_p")}
        # What the types do not know is left out of the validated copy, so equality means that there is nothing of the kind.
        assert typed == _read_out(_ANTHROPIC_REQUEST.validate_python(typed))

    return check


@pytest.fixture
def translate() -> Callable[..., dict[str, Any]]:
    """`translate(*messages, model=..., cap=..., **fields)`: the Messages API request for a chat completion of these messages and fields."""

    def to_request(
        *messages: Any, model: str = "claude-sonnet-4-5-20250929", cap: int | None = None, **fields: Any
    ) -> dict[str, Any]:
        payload = {"model": "alias", "messages": list(messages), **fields}
        return to_anthropic(payload, model=model, default_max_tokens=4096, output_cap=cap)

    return to_request


@pytest.fixture
def refused(translate) -> Callable[..., Untranslatable]:
    """The error that `translate` raises for the same arguments."""

    def error_of(*messages: Any, **fields: Any) -> Untranslatable:
        with pytest.raises(Untranslatable) as caught:
            translate(*messages, **fields)
        return caught.value

    return error_of


CHAT = {"model": "up/m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as running:
        yield running


@pytest.fixture
def make_call() -> Callable[..., Call]:
    """A call as a surface builds it: by default a chat completion of model "up/m"."""

    def make(
        payload: Mapping[str, Any] | None = None,
        *,
        body: bytes | None = None,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        query: str = "",
        headers: Mapping[str, str] | CIMultiDict[str] | None = None,
    ) -> Call:
        is_models = method == "GET" and path.startswith("/v1/models")
        call = Call(
            id="req_1",
            method=method,
            path=path,
            query=query,
            endpoint="models" if is_models else ENDPOINTS.get(path, "relay") if method == "POST" else "relay",
            headers=CIMultiDict({"content-type": "application/json"} if headers is None else headers),
            started_at=0.0,
            started_time=0.0,
        )
        if body is not None:
            call.set_json(body, orjson.loads(body))
        elif method == "POST":
            wanted = dict(CHAT if payload is None else payload)
            call.set_json(orjson.dumps(wanted), wanted)
        return call

    return make


@pytest.fixture
def make_attempt() -> Callable[..., Attempt]:
    """An attempt at deployment "up/m", or another."""

    def make(
        model: str = "m", *, cap: int | None = None, target: Mapping[str, Any] | None = None, **about: Any
    ) -> Attempt:
        deployment = Deployment(about.pop("id", f"up/{model}"), "up", model, **about)
        attempt = Attempt(Target(deployment, **(target or {})), 1, 0.0)
        attempt.output_cap = cap
        return attempt

    return make
