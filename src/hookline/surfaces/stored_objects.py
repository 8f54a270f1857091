"""Routes that name what an upstream keeps: files, batches, threads, stored replies.

Lives here: which routes these are, and their refusal where several tenants share one upstream key. Elsewhere: everything else about
them (they are relayed like any other call).
Idea: an upstream key sees all objects made with it, so an id made by one tenant works for another. Until ids have owners, a gateway
with several tenants refuses these routes rather than trust that ids can't be guessed."""

from __future__ import annotations

from collections.abc import Mapping
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
MEMBERS: Final = ("previous_response_id", "conversation")
"""Members of a /v1/responses body that name a stored object."""
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
    """Raises Forbidden if the body continues a stored object."""
    payload: Mapping[str, Any] = call.payload or {}
    for member in MEMBERS:
        if payload.get(member) is not None:
            raise _forbidden(f'"{member}"')


def _forbidden(what: str) -> Forbidden:
    return Forbidden(
        f"{what} names objects kept by the provider; this gateway serves several tenants with one provider key and "
        "can't tell whose they are",
        code="stored_objects_not_shared",
    )
