"""Ids that a request names: in its query, its JSON at any depth, its form.

Lives here: which members are references, which text looks like an id. Elsewhere: ids in paths (routes.py), ids in replies (claims.py), whose they are (stores).
Idea: a member whose name ends in `_id` is a reference unless it is known to be none, and a value that looks like an id is one wherever no text is due: what
nobody thought of is refused rather than sent. The JSON is read pair by pair, so that no member can hide behind another of its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from hookline import BadRequest, FormField

NAMES: Final = frozenset(
    {
        "container", "conversation", "training_file", "validation_file", "fine_tuned_model_checkpoint", "fine_tuned_model", "consent",
        "result_files", "after", "before",
    }
)  # fmt: skip
"""Members that are references where they hold text, beside all that end in `_id` or `_ids`. (`after` and `before` are cursors of lists.)"""
HARMLESS: Final = frozenset(
    {
        "call_id", "tool_call_id", "tool_use_id", "event_id", "client_event_id", "caller_id", "connector_id", "client_id", "organization_id",
        "project_id", "project_ids", "group_id", "request_id", "custom_id", "user_id", "field_id", "field_ids", "trace_id", "span_id",
        "approval_request_id", "stop_token_ids", "logit_bias_ids", "safety_id", "datasource_item_id",
    }
)  # fmt: skip
"""Members that end in `_id` and name nothing that is kept, or what only its own call knows."""
OF_THE_CLIENT: Final = frozenset(
    {"metadata", "parameters", "schema", "json_schema", "input_schema", "item_schema", "arguments", "properties"}
)
"""Members whose insides are the client's own words."""
DATA: Final = frozenset({"item", "documents", "attributes", "variables", "filters", "sample"})
"""Members whose insides have names that the client chose: only what looks like an id counts there."""
TEXT: Final = frozenset(
    {
        "arguments", "code", "content", "data", "description", "encrypted_content", "file_data", "file_url", "filename", "format", "image_url",
        "input", "inputs", "instructions", "label", "logs", "name", "output", "partial_json", "prompt", "prompt_cache_key", "purpose", "queries",
        "query", "reasoning", "refusal", "role", "safety_identifier", "signature", "status", "stop", "suffix", "summary", "system", "text",
        "thinking", "title", "type", "url", "user",
    }
)  # fmt: skip
"""Members that hold words: whatever these look like, they name nothing."""
SHAPE: Final = re.compile(
    r"(?:file|batch|msgbatch|resp|conv|vs|vsfb|asst|thread|run|msg|ftjob|ftckpt|cntr|container|cfile|upload|evalrun|video|skill|vault|cons|voice|audio)"
    r"[-_](?=[A-Za-z_-]*[0-9])[A-Za-z0-9][A-Za-z0-9_-]{5,200}"
)
"""What ids look like."""
MADE_MODEL: Final = re.compile(r"\s*(?:[^/\s]{1,100}/)?ft:\S{1,300}\s*", re.IGNORECASE)
"""A model that a tenant has made, perhaps behind its provider's name; in any spelling that a lenient server would take for it."""
OF_A_CALL: Final = ("call_", "toolu_")
"""How ids of tool calls begin, which name nothing that is kept."""
PLAIN: Final = frozenset(
    {
        "content", "description", "detail", "effort", "frequency_penalty", "function", "image_url", "include_usage", "input", "instructions",
        "max_completion_tokens", "max_output_tokens", "max_tokens", "messages", "model", "n", "name", "presence_penalty", "reasoning", "role", "seed",
        "stop", "stream", "stream_options", "strict", "temperature", "text", "tool_calls", "tool_choice", "tools", "top_p", "type", "url",
    }
)  # fmt: skip
"""Names that most requests are made of, and that are no references."""
BARE: Final = frozenset({"id", "type", "version", "variables"})
"""A member of an object with an id that has no others stands for what is kept under that id."""
_NEEDLES: Final = (
    b"_file",
    b"ontainer",
    b"onversation",
    b"onsent",
    b"ft:",
    b"\\u00",
    b"fine_tuned",
    "\u017f".encode(),
    "\u212a".encode(),
)
"""The last two are letters that readers without regard to case take for s and k."""
_ID_NEEDLE: Final = b'"id"'
IDS_MAX: Final = 2_000


@dataclass(slots=True)
class References:
    """`named` must be the caller's own; `mentioned` are ids of items that come with their content: they only must not be another's."""

    named: dict[str, None] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    """Every `id` that the client wrote: a reply that repeats it shows nothing new."""
    models: set[str] = field(default_factory=set)
    """Made by fine-tuning: the caller's own, or configured by the operator."""

    def add(self, id: str) -> None:
        """Raises BadRequest beyond IDS_MAX."""
        self.named[id] = None
        if len(self.named) > IDS_MAX:
            raise BadRequest(f"the request names more than {IDS_MAX} stored objects", code="too_many_references")


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written: a name may be there twice."""


def may_name_any(payload: dict[str, Any], body: bytes, endpoint: str) -> bool:
    """Whether a body has to be read pair by pair: a quick look that is wrong only in saying yes.

    The parsed payload tells all names, unless one stood in the body twice; where the payload makes the very bytes of the body again, none did. (A walk costs
    by the member, a search by the byte, and prompts are long.)"""
    if _has_reference_name(payload, endpoint):
        return True
    return not _makes_the_same(payload, body) and _may_hold_name(body, endpoint)


def _makes_the_same(payload: dict[str, Any], body: bytes) -> bool:
    try:
        return orjson.dumps(payload) == body
    except TypeError:  # orjson reads deeper ones than it writes
        return False


def _has_reference_name(payload: dict[str, Any], endpoint: str) -> bool:
    waiting: list[Any] = [payload]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in PLAIN:
                    low = name.casefold()
                    if is_reference_name(low):
                        return True
                    if low == "id" and (endpoint == "responses" or len(value) == 1):
                        return True
                    if low == "audio" and isinstance(inner, dict) and any(key.casefold() == "id" for key in inner):
                        return True
                    if low in OF_THE_CLIENT:
                        continue
                if inner.__class__ is dict or inner.__class__ is list:
                    waiting.append(inner)
        elif value.__class__ is list:
            waiting += [inner for inner in value if inner.__class__ is dict or inner.__class__ is list]
    return False


def _may_hold_name(body: bytes, endpoint: str) -> bool:
    low = body.lower()
    if any(low.count(needle) for needle in _NEEDLES):
        return True
    if low.count(b"_id") > low.count(b"call_id") + low.count(b"tool_use_id"):
        return True
    return low.count(_ID_NEEDLE) > 0 and (endpoint == "responses" or low.count(b'"audio"') > 0)


def read_json(body: bytes, found: References) -> None:
    """What a JSON body names. Raises BadRequest."""
    try:
        value = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise BadRequest("the request body is nested too deeply or is no JSON", code="invalid_json") from None
    waiting: list[tuple[str, Any, bool]] = [("", value, False)]
    while waiting:
        name, value, is_data = waiting.pop()
        if isinstance(value, _Pairs):
            if not is_data:
                _read_id(name, value, found)
            for inner_name, inner in value:
                low = inner_name.casefold()
                is_judged = low == "id" and isinstance(inner, str) and not is_data  # by _read_id
                if low not in OF_THE_CLIENT and not is_judged:
                    is_object = type(inner) is _Pairs
                    # An object as `input` is what a model wrote for a tool; one that stands for a variable of a prompt is a piece of content.
                    is_inner_data = is_data and not (is_object and name == "variables")
                    waiting.append((low, inner, is_inner_data or low in DATA or (low == "input" and is_object)))
        elif isinstance(value, list):
            waiting += [(name, inner, is_data) for inner in value]
        elif isinstance(value, str) and value:
            read_member(name, value, found, is_data=is_data)


def read_member(name: str, value: str, found: References, *, is_data: bool = False) -> None:
    """One member or field that holds text; `name` in lower case."""
    if name in TEXT or name in OF_THE_CLIENT or name in HARMLESS:
        return
    if MADE_MODEL.fullmatch(value):
        found.models.add(value)
    elif name != "model" and ((not is_data and is_reference_name(name)) or SHAPE.fullmatch(value)):
        found.add(value)


def is_reference_name(name: str) -> bool:
    """Whether a member of this name (in lower case) holds ids."""
    return name in NAMES or (name.endswith(("_id", "_ids")) and name not in HARMLESS)


def read_query(query: str, found: References) -> None:
    """What a query names; some servers take `;` for `&`."""
    for name, value in parse_qsl(query, keep_blank_values=True) + parse_qsl(query.partition(";")[2], separator=";"):
        if value:
            read_member(_last_part(name), value, found)


def read_fields(fields: Iterable[FormField], found: References) -> None:
    """What the fields of a form name; what is in a file is no field. Raises BadRequest for a reference without end."""
    for full_name, start, is_whole, is_file in fields:
        name = _last_part(full_name)
        is_reference = is_reference_name(name) or (name == "id" and full_name.lower() != "id")
        if is_reference and not is_whole:
            raise BadRequest(f'the form\'s field "{full_name[:100]}" is too long to be an id', param=full_name[:100])
        value = start.decode("utf-8", "replace")
        if is_reference and value:
            found.add(value)
        elif not is_file and value.lstrip()[:1] in ("{", "["):
            _read_json_field(start, full_name, found, is_whole=is_whole)
        elif not is_file and is_whole and value:
            read_member(name, value, found)


def _read_json_field(start: bytes, full_name: str, found: References, *, is_whole: bool) -> None:
    """A field that holds JSON, or text that only begins like it. Raises BadRequest for JSON of which only the beginning is known."""
    try:
        orjson.loads(start)
    except orjson.JSONDecodeError:
        if not is_whole and _may_hold_name(start, "responses"):
            raise BadRequest(
                f'the form\'s field "{full_name[:100]}" is too long to be checked', param=full_name[:100]
            ) from None
        return
    read_json(start, found)


def _last_part(name: str) -> str:
    """`file_id` of `image[file_id]` and `files[0][file_id]`, `file_ids` of `file_ids[]`; all of `metadata[...]` is the client's own."""
    parts = [part for part in re.split(r"[\[\].]+", name.casefold()) if part and not part.isdigit()]
    return next((part for part in parts if part in OF_THE_CLIENT), parts[-1] if parts else "")


def read_lines(lines: Iterable[bytes], found: References) -> None:
    """What the lines of a batch's input name: each is a request of its own. Raises BadRequest for one that can't be read."""
    for line in lines:
        plain = line.removeprefix(b"\xef\xbb\xbf").strip()
        if not plain.startswith(b"{"):
            continue
        low = plain.lower()
        ids = low.count(b"_id") - low.count(b"call_id") - low.count(b"custom_id") - low.count(b"tool_use_id")
        if ids > 0 or any(needle in low for needle in _NEEDLES) or _ID_NEEDLE in low:
            read_json(plain, found)


def _read_id(name: str, pairs: _Pairs, found: References) -> None:
    """The `id` of an object: a reference if the object is nothing but its id, else the id of something that is sent along."""
    by_name = {key.casefold(): value for key, value in pairs}
    ids = [value for key, value in pairs if key.casefold() == "id" and isinstance(value, str) and value]
    if not ids:
        return
    kind = by_name.get("type")
    is_reference = (
        by_name.keys() <= BARE
        or kind in ("item_reference", "file_id", "skill_reference")
        or (kind == "image_generation_call" and by_name.get("result") is None)
        or name
        in ("agent", "audio", "character", "conversation", "container", "environment", "prompt", "video", "voice")
    )
    found.sent.update(ids)
    for id in ids:
        if is_reference:
            found.add(id)
        elif not id.startswith(OF_A_CALL):
            found.mentioned.add(id)
