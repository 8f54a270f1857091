"""What the tests of several providers share: the vendors' own types as judges of what we write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParams
from pydantic import BaseModel, TypeAdapter

from hookline.providers.anthropic_request import to_anthropic
from hookline.providers.untranslatable import Untranslatable

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
