"""Routes that name what an upstream keeps: files, batches, threads, stored replies.

Lives here: which routes these are, and their refusal where several tenants share one upstream key. Elsewhere: everything else about
them (they are relayed like any other call).
Idea: an upstream key sees all objects made with it, so an id made by one tenant works for another. Where nobody records whose they are (the
plugin `owners`, which then decides by id), a gateway with several tenants refuses these routes rather than trust that ids can't be guessed."""

from __future__ import annotations

from typing import Any, Final

from hookline.call import Call
from hookline.errors import Forbidden

FAMILIES: Final = frozenset(
    {
        "files", "uploads", "batches", "vector_stores", "fine_tuning", "fine-tunes", "conversations", "assistants", "threads", "containers",
        "evals", "videos", "organization", "projects", "skills", "chatkit", "realtime", "messages",
    }
)  # fmt: skip
"""First segments below /v1 where even a list shows what others made."""
KEPT_BY_POST: Final = frozenset({("responses",), ("chat", "completions")})
"""POST here asks for a reply; everything below, and any other method, names a stored one."""
MEMBERS: Final = frozenset(
    {"previous_response_id", "conversation", "file_id", "file_ids", "vector_store_id", "vector_store_ids", "container", "container_id", "skill_id"}
)  # fmt: skip
"""Members of a body that name a stored object where they hold text, wherever they stand."""
OF_THE_CLIENT: Final = frozenset({"metadata", "parameters", "schema", "arguments"})
"""Members whose insides are the client's own words."""
READ_ONLY: Final = frozenset({"GET", "HEAD"})


def refuse_stored_route(method: str, path: str) -> None:
    """Raises Forbidden if the (folded) path names stored objects."""
    segments = tuple(path.removeprefix("/v1/").strip("/").split("/"))
    family = segments[0]
    if family == "models":
        is_stored = method not in READ_ONLY
    elif family == "messages":
        is_stored = len(segments) > 1 and segments[1] == "batches"
    elif family in FAMILIES:
        is_stored = True
    else:
        is_stored = method != "POST" or any(segments[: len(kept)] == kept != segments for kept in KEPT_BY_POST)
    if is_stored:
        raise _forbidden(f"{method} on this path")


def refuse_stored_member(call: Call) -> None:
    """Raises Forbidden if the body names a stored object: one to continue, a file, a vector store, a stored prompt or item."""
    waiting: list[Any] = [call.payload]
    prompt = (call.payload or {}).get("prompt")
    if isinstance(prompt, dict) and prompt.get("id") is not None:
        raise _forbidden('"prompt.id"')
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in MEMBERS and _is_named(inner):
                    raise _forbidden(f'"{name}"')
                if isinstance(inner, list | dict) and name not in OF_THE_CLIENT:
                    waiting.append(inner)
            if isinstance(value.get("id"), str) and is_reference(value):
                raise _forbidden('an item with an "id" and no content of its own')


def is_reference(item: dict[str, Any]) -> bool:
    """Whether an object with an id stands for what is kept under it. A reference need not say its type (`ItemReference` of the openai package);
    an image call without its result and a message's `audio` (`{"id": ...}` alone) are references too."""
    kind = item.get("type")
    if kind == "image_generation_call":
        return item.get("result") is None
    return kind == "item_reference" or (kind is None and item.keys() <= {"id", "type"})


def _is_named(value: Any) -> bool:
    """Text, a list of texts, or an object with an id; a JSON Schema that describes such a member is none of these."""
    if isinstance(value, dict):
        return isinstance(value.get("id"), str)
    return isinstance(value, str) or (isinstance(value, list) and any(isinstance(item, str) for item in value))


def _forbidden(what: str) -> Forbidden:
    return Forbidden(
        f"{what} names objects kept by the provider; this gateway serves several tenants with one provider key and "
        'can\'t tell whose they are; put "owners" into [chain] plugins',
        code="stored_objects_not_shared",
    )
