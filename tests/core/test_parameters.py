"""What routes and commands of plugins take: one reader, one refusal."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from hookline import BadRequest, ListParameters, Parameters, RouteRequest, UnsupportedMedia, list_object


class Inner(Parameters):
    usd: float


class Asked(ListParameters):
    limit: int = Field(20, ge=1, le=100)
    colour: Literal["yellow", "green"] | None = None
    is_new: bool = Field(False, alias="new")
    tag: list[str] = Field(default=[])
    inner: Inner | None = None
    by_name: dict[str, Inner] = Field(default={})


def request(query: str = "", body: bytes = b"", content_type: str = "") -> RouteRequest:
    headers = {"content-type": content_type} if content_type else {}
    return RouteRequest("POST", "/x", query, headers, body, is_admin=True, is_loopback=True)


def test_a_query_is_read_as_its_types_and_a_list_as_often_as_it_comes():
    asked = request("limit=5&new=true&tag=a&tag=b%2Cc&after=x%20y&colour=green").parameters(Asked)

    assert (asked.limit, asked.is_new, asked.tag, asked.after, asked.colour) == (5, True, ["a", "b,c"], "x y", "green")
    assert request().parameters(Asked).limit == 20


@pytest.mark.parametrize(
    ("query", "param", "told"),
    [
        ("limt=5", "limt", '"limt": unknown parameter; did you mean "limit"?'),
        ("zzz=5", "zzz", '"zzz": unknown parameter; known: after, by_name, colour, inner, limit, new, tag'),
        ("is_new=true", "is_new", '"is_new": unknown parameter'),
        ("limit=", "limit", '"limit": must be a whole number'),
        ("limit=0", "limit", '"limit": must be greater than or equal to 1'),
        ("limit=1&limit=2", "limit", '"limit": is given twice; keep one'),
        ("new=perhaps", "new", '"new": must be true or false'),
        ("colour=gren", "colour", '"colour": must be "yellow" or "green"; did you mean "green"?'),
        ("tag=a%00", "tag", '"tag": must hold no NUL characters'),
        ("inner=1", "inner", '"inner": must be an object'),
        (
            "limit=x&colur=green",
            "colur",
            '"colur": unknown parameter; did you mean "colour"?; "limit": must be a whole',
        ),
        ("tag=%ff", None, "the query must be UTF-8 and hold at most 1000 parameters"),
        ("&".join(["tag=a"] * 1_001), None, "hold at most 1000 parameters"),
        ("&".join(f"x{n}=1" for n in range(900)), "x0", "; and 890 more"),
        ("x" * 5_000 + "=1", "x" * 100, "unknown parameter"),
    ],
)
def test_a_query_that_is_not_understood_is_refused_by_name(query, param, told):
    with pytest.raises(BadRequest) as raised:
        request(query).parameters(Asked)

    assert told in raised.value.message
    assert (raised.value.error_code, raised.value.param) == ("invalid_parameter", param)
    assert len(raised.value.message) < 2_500


@pytest.mark.parametrize(
    ("body", "code", "param", "told"),
    [
        (b'{"limit": "5"}', "invalid_parameter", "limit", '"limit": must be a whole number'),
        (b'{"limit": 5.0}', "invalid_parameter", "limit", '"limit": must be a whole number'),
        (b'{"new": 1}', "invalid_parameter", "new", '"new": must be true or false'),
        (
            b'{"inner": {"us": 1}}',
            "invalid_parameter",
            "inner.us",
            '"inner.us": unknown parameter; did you mean "usd"?',
        ),
        (b'{"by_name": {"a": {"usd": "x"}}}', "invalid_parameter", "by_name.a.usd", "must be a number"),
        (b'{"tag": ["a", 5]}', "invalid_parameter", "tag[1]", '"tag[1]": must be text'),
        (b'{"tag": "a"}', "invalid_parameter", "tag", '"tag": must be a list'),
        (b'{"limit": 5, "limit": 6}', "invalid_parameter", "limit", "is given twice"),
        (b'{"inner": {"usd": 5, "\\u0075sd": 6}}', "invalid_parameter", "usd", "is given twice"),
        (b"", "invalid_json", None, "the body is empty; send a JSON object"),
        (b"[]", "invalid_json", None, "must be a JSON object"),
        (b"\xff", "invalid_json", None, "the body is not valid JSON"),
        (b'{"limit": NaN}', "invalid_json", None, "the body is not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "invalid_json", None, "the body is"),
        (b'{"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}", None, None, ""),
    ],
)
def test_a_body_that_is_not_understood_is_refused_by_name(body, code, param, told):
    with pytest.raises(BadRequest) as raised:
        request(body=body).json_object(Asked)

    assert told in raised.value.message
    if code is not None:
        assert (raised.value.error_code, raised.value.param) == (code, param)


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "application/x-www-form-urlencoded", "text/json+json"]
)
def test_json_is_taken_under_whatever_sloppy_clients_call_it(content_type):
    assert request(body=b'{"limit": 7}', content_type=content_type).json_object(Asked).limit == 7


def test_what_says_that_it_is_something_else_is_a_415():
    with pytest.raises(UnsupportedMedia):
        request(body=b"{}", content_type="multipart/form-data; boundary=x").json_object(Asked)


def test_an_empty_body_is_an_empty_object_only_where_that_is_said():
    assert request(body=b" \n").json_object(Asked, may_be_empty=True).limit == 20


def test_a_page_is_openais_list_object():
    lines = [{"id": "a"}, {"id": "b"}, {"id": "c"}]

    assert list_object(lines, 2) == {
        "object": "list", "data": lines[:2], "first_id": "a", "last_id": "b", "has_more": True,
    }  # fmt: skip
    assert list_object([{}, {}], 2, ["x", "y"], by=[]) == {
        "object": "list", "by": [], "data": [{}, {}], "first_id": "x", "last_id": "y", "has_more": False,
    }  # fmt: skip
    assert list_object([], 2)["last_id"] is None
