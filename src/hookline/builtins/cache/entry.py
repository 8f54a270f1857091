"""An entry: an answer as it is kept.

Lives here: how it is written and read, how old is too old, which body a call of which form gets. Elsewhere: embeddings (embeddings.py), what an answer is (recording.py), the
other form (assemble.py, disassemble.py), pace (replay.py).
Idea: one line of JSON about the reply, then its bytes as they were relayed. A call that wants the form they have gets exactly these; another form is made of them, or it is a miss.

An entry that can't be read (another version wrote it) is a miss, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import orjson

from hookline import Call, Usage
from hookline.builtins.cache.assemble import assemble
from hookline.builtins.cache.disassemble import disassemble
from hookline.builtins.cache.echo import with_echo
from hookline.builtins.cache.event_stream import Inexact, with_usage, without_usage
from hookline.builtins.cache.key import Form
from hookline.builtins.cache.options import CacheOptions
from hookline.builtins.cache.wishes import Wishes

ENTRY_VERSION = 2
PIECE_CHARS = 24
"""Of a plain reply's text that is told at its first pace."""

Freshness = Literal["hit", "stale", "fallback"]
"""`stale`: served at once, and asked anew; `fallback`: only if no provider answers."""


class Entry(NamedTuple):
    """What is kept of one reply. `stored_at`: Unix seconds."""

    content_type: str
    form: Form
    body: bytes
    stored_at: float
    usage: Any = None
    """Of a stream that does not tell it itself."""
    marks: Sequence[Sequence[int]] = ()
    echo: Mapping[str, Any] = MappingProxyType({})
    """What the reply repeats of its request, though it is not in the key."""
    made_by: str = ""
    """The deployment's id; empty in entries of versions that did not keep it."""

    def to_bytes(self) -> bytes:
        content_type, form, body, stored_at, usage, marks, echo, made_by = self
        told: dict[str, Any] = {
            "version": ENTRY_VERSION,
            "type": content_type,
            "form": form,
            "at": stored_at,
            "by": made_by,
        }
        if usage:
            told["usage"] = usage
        if marks:
            told["marks"] = marks
        if echo:
            told["echo"] = echo
        return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE) + body


def read_entry(kept: bytes) -> Entry | None:
    """What `to_bytes` wrote; None if it is of another version."""
    line, _, body = kept.partition(b"\n")
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(told, dict) or told.get("version") != ENTRY_VERSION:
        return None
    find = told.get
    usage, marks, echo = find("usage"), find("marks", []), find("echo", {})
    return Entry(told["type"], told["form"], body, told["at"], usage, marks, echo, find("by", ""))


def judge(age_s: float, wishes: Wishes, options: CacheOptions) -> Freshness | None:
    """What an answer of this age is good for, by what the client wishes and the operator allows; None: nothing."""
    is_young = wishes.max_age_s is None or (wishes.max_age_s > 0 and int(age_s) <= wishes.max_age_s)
    if is_young and age_s < options.ttl_s:
        return "hit"
    if wishes.max_stale_s is not None:
        limit_s = options.ttl_s if wishes.max_age_s is None else min(options.ttl_s, wishes.max_age_s)
        if age_s < limit_s + wishes.max_stale_s:
            return "stale"
    if is_young and age_s < options.ttl_s + options.stale_s:
        return "stale"
    return "fallback" if is_young and age_s < options.ttl_s + options.stale_if_error_s else None


def body_for(entry: Entry, call: Call, form: Form, *, is_paced: bool = False) -> bytes | list[bytes]:
    """The body in this form; a list: the events of a stream, made of a plain reply. Raises Inexact."""
    body = entry.body
    if call.endpoint == "responses":
        body = with_echo(body, entry, call)
    if form == entry.form:
        return body
    if form == "json":
        return assemble(call.endpoint, body, entry.usage)
    if entry.form == "json":
        chars = PIECE_CHARS if is_paced else None
        return disassemble(call.endpoint, body, wants_usage=form == "events+usage", piece_chars=chars)
    return without_usage(body) if form == "events" else with_usage(body, entry.usage)


def form_of_reply(call: Call, *, is_stream: bool, form: Form) -> Form:
    """In which form an upstream answered: not always the one that was asked for."""
    if not is_stream:
        return "json"
    return "events" if form == "json" else form


def usage_object(endpoint: str, usage: Usage | None) -> Any:
    """A usage that a stream kept to itself, on the wire again; None where it is only estimated."""
    if usage is None or usage.is_estimated or endpoint not in ("chat", "completions"):
        return None
    told: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    if endpoint == "chat":
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return told


__all__ = ["Entry", "Inexact", "body_for", "form_of_reply", "judge", "read_entry", "usage_object"]
