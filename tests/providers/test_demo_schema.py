"""Examples of JSON Schemas, judged by a small reading of the schema itself."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from hookline.providers.demo_schema import example_of

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
