"""Examples of JSON Schemas, judged by a small reading of the schema itself."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from hookline.providers.demo_schema import example_of, find_schema

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"type": "object", "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["name", "children"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "example value"),
        ({"type": "string", "format": "email"}, "ann@example.com"),
        ({"type": "string", "minLength": 20}, "example valuexxxxxxx"),
        ({"type": "string", "maxLength": 3}, "exa"),
        ({"type": "integer"}, 1),
        ({"type": "integer", "minimum": 5, "maximum": 9}, 5),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "number", "maximum": -2}, -2),
        ({"type": "integer", "multipleOf": 4}, 4),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 1]),
        ({"type": "string", "pattern": r"^\d{5}$"}, "11111"),
        ({"type": "string", "pattern": r"(unreadable"}, "example value"),
        ({"type": "string", "pattern": r"^\S+$", "format": "email"}, "ann@example.com"),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "minItems": 2}, [1, "x"]),
        ({"type": "array", "items": [{"type": "integer"}, {"const": "x"}]}, [1, "x"]),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 3}, [1, 2, 2]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True}, [1, 2]),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "uniqueItems": True}, ["a", "b"]),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 2, "uniqueItems": True},
            ["example value", "example value 1"],
        ),
        ({"type": "integer", "exclusiveMaximum": 1}, 0),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"enum": ["x", "y"]}, "x"),
        ({"const": 7}, 7),
        ({"type": "integer", "default": 3}, 3),
        ({"type": "integer", "examples": [4]}, 4),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1),
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "boolean"}}}]},
            {"a": 1, "b": True},
        ),
        ({"properties": {"city": {"type": "string"}}}, {"city": "Paris"}),
        ({"$ref": "#/definitions/x", "definitions": {"x": {"const": 1}}}, 1),
        (True, {}),
        (None, None),
        ({"$ref": "#/nowhere"}, None),
    ],
)
def test_examples(schema: Any, expected: Any) -> None:
    assert example_of(schema) == expected


@pytest.mark.parametrize("schema", [TREE, {"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}])
def test_a_schema_that_refers_to_itself_ends(schema: dict[str, Any]) -> None:
    assert len(orjson.dumps(example_of(schema))) < 10_000


def test_a_schema_written_in_a_message_is_found() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    texts = ['answer {"like": "this"} {not json}', f"by this schema: {orjson.dumps(schema).decode()} and no other"]

    assert find_schema(texts) == schema
    assert find_schema([orjson.dumps({"name": "x", "schema": schema}).decode()]) == schema
    assert find_schema(texts[:1]) is None


def test_looking_for_a_schema_ends_on_hostile_text() -> None:
    assert find_schema(['{"' * 1_000_000, '{"a":' * 1_000_000]) is None
