"""Demo schema: a value that fits a JSON Schema, the same one each time.

Lives here: examples for tool arguments and structured outputs. Elsewhere: who asks for them (demo_chat.py).
Idea: what the schema says itself (const, enum, default, examples) is the best example; then its format, its pattern, then the property's name, then its type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from json import JSONDecoder
from typing import Any

from hookline.providers.demo_pattern import text_for

MAX_DEPTH = 12
"""A schema may refer to itself; below this depth optional members are left out and lists are empty."""

MAX_SEARCHED_CHARS = 65_536
MAX_TRIES = 32

_FORMATS = {
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "P1D",
    "email": "ann@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_NAMES = {
    "city": "Paris", "location": "Paris", "country": "France", "unit": "celsius", "language": "en", "email": "ann@example.com",
    "url": "https://example.com/", "date": "2026-01-31", "name": "Ann", "query": "example", "path": "example.txt",
}  # fmt: skip


def example_of(schema: Any, *, name: str = "value") -> Any:
    """A value for `schema`. Never raises: what it does not understand becomes null or an empty object."""
    return _example(schema, name, schema, 0)


def find_schema(texts: Iterable[str]) -> dict[str, Any] | None:
    """The first JSON Schema of an object that is written in one of the texts: how many programs say what JSON they want."""
    decoder = JSONDecoder()
    for text in texts:
        text = text[:MAX_SEARCHED_CHARS]
        for begins in islice(re.finditer(r'\{\s*"', text), MAX_TRIES):
            try:
                found: dict[str, Any] = decoder.raw_decode(text, begins.start())[0]
            except (ValueError, RecursionError):
                continue
            if isinstance(found.get("schema"), dict):  # with its name around it
                found = found["schema"]
            if isinstance(found.get("properties"), dict):
                return found
    return None


def _example(schema: Any, name: str, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict):
        return {} if schema is True else None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    if isinstance(schema.get("$ref"), str):
        return _example(_resolve(schema["$ref"], root), name, root, depth + 1) if depth < MAX_DEPTH else None
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            options = [option for option in schema[key] if option != {"type": "null"}]
            # At depth a null, where it is allowed, ends a schema that refers to itself.
            chosen = options[0] if options and (depth < MAX_DEPTH // 2 or len(options) == len(schema[key])) else None
            return _example(chosen, name, root, depth + 1) if depth < MAX_DEPTH else None
    if isinstance(schema.get("allOf"), list):
        schema = _merged(schema, root)
    return _of_type(schema, name, root, depth)


def _of_type(schema: dict[str, Any], name: str, root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        return _array(schema, name, root, depth)
    if kind in ("integer", "number"):
        return _number(schema, kind)
    if kind == "boolean":
        return True
    return _text(schema, name) if kind == "string" else None


def _object(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required")
    if depth >= MAX_DEPTH // 2 and isinstance(required, list):
        properties = {key: value for key, value in properties.items() if key in required}
    if depth >= MAX_DEPTH:
        return {}
    return {key: _example(value, key, root, depth + 1) for key, value in properties.items()}


def _array(schema: dict[str, Any], name: str, root: Any, depth: int) -> list[Any]:
    given = schema.get("items", {})
    places = schema.get("prefixItems", given)  # a tuple, as it is written today and as it was before 2020
    first = [_example(place, name, root, depth + 1) for place in places[:100]] if isinstance(places, list) else []
    count = _count(schema.get("minItems")) or (1 if depth < MAX_DEPTH // 2 and not first else 0)
    rest = schema.get("additionalItems", {}) if isinstance(given, list) else given
    filled = [_example(rest, name, root, depth + 1) for _ in range(min(count, 100) - len(first))]
    if schema.get("uniqueItems") is True and len(filled) > 1:
        filled = _distinct(filled, rest)
    return first + filled


def _distinct(items: list[Any], schema: Any) -> list[Any]:
    """The same items, made different where their kind has room for it."""
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if isinstance(choices, list):
        return choices[: len(items)]
    if isinstance(items[0], str):
        return [f"{item} {number}" if number else item for number, item in enumerate(items)]
    is_number = isinstance(items[0], int | float) and not isinstance(items[0], bool)
    return [item + number for number, item in enumerate(items)] if is_number else items


def _number(schema: dict[str, Any], kind: str) -> float:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    below = schema.get("exclusiveMaximum")
    value: float = 1
    if isinstance(low, int | float) and value <= low:
        value = low + 1 if "exclusiveMinimum" in schema else low
    if isinstance(high, int | float) and value > high:
        value = high
    if isinstance(below, int | float) and value >= below:
        middle = (low + below) / 2 if isinstance(low, int | float) else below - 1
        value = below - 1 if kind == "integer" else middle
    step = schema.get("multipleOf")
    if isinstance(step, int | float) and step > 0:
        value = step * max(1, round(value / step))
    return round(value) if kind == "integer" else value


def _text(schema: dict[str, Any], name: str) -> str:
    shortest, longest = _count(schema.get("minLength")), _count(schema.get("maxLength"))
    text = _FORMATS.get(str(schema.get("format")))
    if text is None and isinstance(schema.get("pattern"), str):
        text = text_for(schema["pattern"], min_chars=shortest)
        if text is not None:
            return text
    text = text or _NAMES.get(name.lower()) or f"example {name}"
    text = text.ljust(min(shortest, 10_000), "x")
    return text[:longest] if longest else text


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _merged(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        part = _resolve(part["$ref"], root) if isinstance(part, dict) and "$ref" in part else part
        if isinstance(part, dict):
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            merged = {**part, **merged, "properties": properties} if properties else {**part, **merged}
    return merged
