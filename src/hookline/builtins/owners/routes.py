"""Which routes name stored objects, and where in a path their ids stand.

Lives here: the table of collections, reading a path against it. Elsewhere: ids in bodies and queries (references.py), whose an id is (stores).
Idea: below a collection ids and words take turns (`vector_stores/{id}/file_batches/{id}/files`), so one rule reads every path that there is and most that will be.
What is read is the form that the most lenient server would see; an id is taken as it stands, so that any other spelling of it is unknown."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

COLLECTIONS: Final = (
    "files", "uploads", "batches", "vector_stores", "fine_tuning/jobs", "conversations", "responses", "chat/completions", "assistants",
    "threads", "threads/runs", "containers", "evals", "videos", "videos/characters", "videos/edits", "videos/extensions", "skills",
    "audio/voices", "audio/voice_consents", "messages/batches", "chatkit/threads", "agents", "agents/sessions", "agents/automations",
    "agents/environments", "agents/environments/templates", "vaults", "responses/compact", "responses/input_tokens",
    "fine_tuning/alpha/graders/run", "fine_tuning/alpha/graders/validate",
)  # fmt: skip
"""Paths below /v1 where objects are made and listed; the longest that fits counts."""
WORDS: Final = frozenset(
    {
        "artifacts", "cancel", "checkpoints", "complete", "content", "credentials", "events", "file_batches", "files", "input_items",
        "invocations", "items", "messages", "output_items", "parts", "pause", "remix", "results", "resume", "runs", "search", "steps",
        "submit_tool_outputs", "subagents", "traces", "turns", "versions",
    }
)  # fmt: skip
"""What may follow an id. Anything else there is read as an id, and so is unknown."""
NUMBERED: Final = frozenset({"versions"})
"""What follows these words is a number."""
WITHHELD: Final = frozenset(
    {"organization", "projects", "realtime", "live", "chatkit", "webhook_endpoints", "webhook_event_types", "safety", "fine-tunes"}
)  # fmt: skip
"""Families whose objects belong to everyone with the provider's key: accounts, webhooks of all tenants' events, keys that would pass by the gateway."""
ALSO_SERVED: Final = frozenset({"audio", "chat", "messages"})
"""First segments with routes of both sorts: what is in no collection is an ordinary call."""
_FAMILIES: Final = WITHHELD | {name.partition("/")[0] for name in COLLECTIONS} - ALSO_SERVED
_BY_SEGMENTS: Final = {tuple(name.split("/")): name for name in COLLECTIONS}
_LONGEST: Final = max(map(len, _BY_SEGMENTS))
_PLAIN: Final = re.compile(r"[!-~]{1,512}")


class Route(NamedTuple):
    """A path that names stored objects. `ids` are those that stand in it, in order."""

    collection: str
    ids: tuple[str, ...] = ()
    word: str = ""
    """The last word behind an id."""

    @property
    def is_own_list(self) -> bool:
        """The collection itself: GET there lists everybody's objects. What lies below an id belongs to the id's owner."""
        return not self.ids and not self.word


class Withheld(Exception):
    """A route whose objects can't be told apart by tenant."""


def read_route(method: str, path: str) -> Route | None:
    """The stored objects that a path names; None for a call that names none there. Raises Withheld."""
    exact = [part for part in unquote(path).replace("\\", "/").split("/") if part]
    kept = [(fold_segment(part), part) for part in exact]
    kept = [pair for pair in kept if pair[0]][1:]  # without "v1"
    folded = [pair[0] for pair in kept]
    first = folded[0] if folded else ""
    if first == "models":
        if method in ("GET", "HEAD"):
            return None
        if len(kept) < 2:
            raise Withheld
        return Route("models", ("/".join(pair[1] for pair in kept[1:]),))
    for size in range(min(_LONGEST, len(folded)), 0, -1):
        collection = _BY_SEGMENTS.get(tuple(folded[:size]))
        if collection is not None and first not in WITHHELD - {"chatkit"}:
            return _read_rest(collection, kept[size:])
    if first in _FAMILIES or method != "POST":
        raise Withheld
    return None


def fold_segment(part: str) -> str:
    """A segment as a lenient server would match it: in lower case, without parameters and without a space or dot at its ends."""
    return part.lower().partition(";")[0].strip().rstrip(". ")


def is_plain(id: str) -> bool:
    """Whether it could be an id at all: visible ASCII, not endless."""
    return _PLAIN.fullmatch(id) is not None


def _read_rest(collection: str, rest: list[tuple[str, str]]) -> Route:
    ids: list[str] = []
    word = ""
    expects_id = True
    for folded, exact in rest:
        if expects_id:
            if word not in NUMBERED:
                ids.append(exact)
            expects_id = False
        elif folded in WORDS:
            word, expects_id = folded, True
        else:
            ids.append(exact)
    return Route(collection, tuple(ids), word)
