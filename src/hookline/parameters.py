"""What a plugin's own routes and commands take: a query, a JSON body or options as a pydantic model.

Lives here: reading them, the refusal that names what is wrong, lists a page at a time. Elsewhere: the words (model_problems.py), `RouteRequest` (host.py), bodies of calls
(surfaces/).
Idea: one way for every route: what is not understood is refused by name, with the nearest right one, so that a misspelt filter never answers for everybody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hookline.content_type import kind_of
from hookline.errors import BadRequest, UnsupportedMedia
from hookline.model_problems import known_names, nearest, path_of, words_of

M = TypeVar("M", bound=BaseModel)

CODE = "invalid_parameter"
PAIRS_MAX = 1_000
"""Of a query."""
TOLD_MAX = 10
"""So many wrong parameters are named at once."""
NAME_CHARS_MAX = 100
"""Of a name that is told back."""


class Parameters(BaseModel):
    """Base for what a route takes: unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ListParameters(Parameters):
    """What every list takes; a list with other bounds declares `limit` anew."""

    limit: int = Field(20, ge=1, le=100, description="Of one page, 100 at most.")
    after: str | None = Field(None, min_length=1, max_length=1_000, description="The `last_id` of the page before.")


def parse_members(model: type[M], values: Mapping[str, Any]) -> M:
    """`values`, as JSON has them, as `model`. Raises BadRequest that names every wrong member; `param` is the first."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(model, error, values) from None


def parse_query(model: type[M], query: str) -> M:
    """A query as `model`; a field that is a list takes its parameter as often as it comes. Raises BadRequest."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=PAIRS_MAX)
        query.encode()
    except ValueError:
        raise BadRequest(f"the query must be UTF-8 and hold at most {PAIRS_MAX} parameters", code=CODE) from None
    repeatable = {field.alias or name for name, field in model.model_fields.items() if _is_list(field.annotation)}
    values: dict[str, Any] = {}
    for name, value in pairs:
        if "\0" in value:
            raise _one(name, "must hold no NUL characters")
        if name in repeatable:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise _one(name, "is given twice; keep one")
        else:
            values[name] = value
    try:
        return model.model_validate(values, strict=False)  # everything is text here
    except ValidationError as error:
        raise _refusal(model, error, values, depth=1) from None


def parse_body(model: type[M], body: bytes, content_type: str, *, may_be_empty: bool = False) -> M:
    """A JSON body as `model`. Raises BadRequest, and UnsupportedMedia for a type that is none of JSON's."""
    if kind_of(content_type) == "other":
        raise UnsupportedMedia("this route takes JSON: send it with `content-type: application/json`")
    if may_be_empty and not body.strip():
        return parse_members(model, {})
    try:
        values = orjson.loads(body)
        json.loads(body, object_pairs_hook=_refuse_repeated)  # two readers could disagree which one counts
    except orjson.JSONDecodeError as error:
        told = f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise BadRequest(
            told if body.strip() else "the body is empty; send a JSON object", code="invalid_json"
        ) from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    if not isinstance(values, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return parse_members(model, values)


def list_object(
    found: Sequence[Mapping[str, Any]], limit: int, cursors: Sequence[str] | None = None, **more: Any
) -> dict[str, Any]:
    """One page as OpenAI's list object. `found` holds one line more than `limit` where there are more; `cursors` are what `after` takes, one per line, if that is not
    its `id`."""
    shown = found[:limit]
    ids = [line["id"] for line in shown] if cursors is None else cursors[:limit]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", **more, "data": shown, **ends, "has_more": len(found) > limit}


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple, set, frozenset):
        return True
    return any(_is_list(branch) for branch in get_args(annotation))


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _one(next(name for name in names if names.count(name) > 1), "is given twice; keep one")
    return found


def _one(name: str, words: str) -> BadRequest:
    name = name[:NAME_CHARS_MAX]
    return BadRequest(f'"{name}": {words}', code=CODE, param=name)


def _refusal(model: type[BaseModel], error: ValidationError, values: Any, *, depth: int | None = None) -> BadRequest:
    schema: Mapping[str, Any] = {}
    wrong: dict[str, str] = {}
    details = error.errors(include_url=False)
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")  # a misspelt one is why another is missing
    for detail in details:
        path = path_of(detail, values)[:depth]
        if detail["type"] == "extra_forbidden":
            schema = schema or model.model_json_schema()
            known = known_names(schema, path[:-1])
            words = f"unknown parameter{nearest(str(path[-1]), known) if known else '; there is none here'}"
        else:
            words = "must be given" if detail["type"] == "missing" else words_of(detail)
        wrong.setdefault(_name(path), words)
    told = [f'"{name}": {words}' if name else words for name, words in list(wrong.items())[:TOLD_MAX]]
    more = f"; and {len(wrong) - TOLD_MAX} more" if len(wrong) > TOLD_MAX else ""
    return BadRequest("; ".join(told) + more, code=CODE, param=next(iter(wrong)) or None)


def _name(path: Sequence[str | int]) -> str:
    """`budget.rolling[0].usd`."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part[:NAME_CHARS_MAX]}" if name else part[:NAME_CHARS_MAX]
    return name
