"""Paths and bodies that name stored objects: tables, and a walk through the official SDK so that no family is forgotten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai
import orjson
import pytest

from hookline import BadRequest, FormField
from hookline.builtins.owners.claims import ids_in
from hookline.builtins.owners.references import (
    HARMLESS,
    NAMES,
    References,
    is_reference_name,
    may_name_any,
    read_fields,
    read_json,
    read_lines,
    read_query,
)
from hookline.builtins.owners.routes import Route, Withheld, read_route

SDK = Path(openai.__file__).parent
CALL = re.compile(r'self\._(get_api_list|get|post|delete|put|patch)\(\s*(?:path_template\(\s*)?f?"(/[^"]*)"')
WITHHELD = (
    "/organization",
    "/projects",
    "/realtime",
    "/live",
    "/chatkit/sessions",
    "/webhook",
    "/safety",
    "/fine_tuning/checkpoints",
)
ORDINARY = ("/audio/speech", "/audio/transcriptions", "/audio/translations", "/completions", "/embeddings", "/moderations", "/images/",
            "/decisions", "/content_provenance_checks")  # fmt: skip
"""Routes that make an answer and keep nothing."""


def sdk_routes() -> list[tuple[str, str]]:
    """(method, path template) of everything that the SDK can ask."""
    found = set()
    for file in (SDK / "resources").rglob("*.py"):
        for name, path in CALL.findall(file.read_text()):
            method = {"get_api_list": "POST" if path.endswith("/search") else "GET"}.get(name, name.upper())
            found.add((method, path.partition("?")[0]))
    return sorted(found)


def test_the_walk_finds_the_sdks_routes():
    assert len(sdk_routes()) > 250


@pytest.mark.parametrize(("method", "template"), sdk_routes())
def test_every_route_of_the_sdk_is_read_withheld_or_ordinary(method: str, template: str) -> None:
    """A family that a new version of the SDK brings fails here until somebody has decided what it is."""
    ids = [f"id-{number}" for number, _ in enumerate(re.findall(r"{\w+}", template))]
    wanted = iter(ids)
    path = "/v1" + re.sub(r"{\w+}", lambda _: next(wanted), template)
    if template.startswith(WITHHELD):
        with pytest.raises(Withheld):
            read_route(method, path)
        return

    route = read_route(method, path)

    if template.startswith(ORDINARY) or (template in ("/models", "/models/{model}") and method == "GET"):
        assert route is None
        return
    assert route is not None, "which collection is this?"
    numbers = [id for id, word in zip(ids, re.findall(r"(\w+)/{\w+}", template), strict=True) if word == "versions"]
    assert list(route.ids) == [id for id in ids if id not in numbers]


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("/v1/files/file-1", ["file-1"]),
        ("/v1/Files/file-1", ["file-1"]),
        ("/v1/%66iles/file-1", ["file-1"]),
        ("/v1/files/%66ile-1", ["file-1"]),
        ("/v1/files/%2566ile-1", ["%66ile-1"]),
        ("/v1/files;x/file-1;y", ["file-1;y"]),
        ("/v1/files/FILE-1", ["FILE-1"]),
        ("/v1/files/file-1%20/content", ["file-1 "]),
        ("/v1/files%2ffile-1%2fcontent", ["file-1"]),
        ("/v1/files/file-1%3fx", ["file-1?x"]),
        ("/v1//files//file-1", ["file-1"]),
        ("/v1/files/file-1/file-2", ["file-1", "file-2"]),
        ("/v1/threads/t/runs/r/steps/s", ["t", "r", "s"]),
        ("/v1/skills/s/versions/2/content", ["s"]),
        ("/v1/threads/runs", []),
        ("/v1/%5Cfiles%5Cfile-1", ["file-1"]),
    ],
)
def test_ids_in_a_path_are_taken_as_a_lenient_server_would_find_them(path: str, ids: list[str]) -> None:
    assert list((read_route("GET", path) or Route("")).ids) == ids


def sdk_params() -> set[str]:
    """Members of requests that hold an id, or several: text whose name says so."""
    member = re.compile(r"^    (\w+_ids?): .*str", re.MULTILINE)
    files = [*(SDK / "types").rglob("*_params.py"), *(SDK / "types").rglob("*_param.py")]
    return {name for file in files if "/admin/" not in str(file) for name in member.findall(file.read_text())}


def test_every_id_of_the_sdks_requests_is_a_reference_or_known_to_be_none():
    """What is known to be none is decided by hand, so the list may hold nothing by chance."""
    params = sdk_params()

    assert {
        "file_id",
        "file_ids",
        "previous_response_id",
        "vector_store_ids",
        "input_file_id",
        "assistant_id",
    } <= params
    assert {name for name in params if not is_reference_name(name)} == params & HARMLESS
    assert not NAMES & HARMLESS


ID = "file-abc123456789"


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": ID}]}]},
        {"messages": [{"content": [{"type": "file", "file": {"file_id": ID}}]}]},
        {"input_file_id": ID},
        {"training_file": ID},
        {"validation_file": ID},
        {"file_ids": ["x", ID]},
        {"File_ID": ID},
        {"previous_response_id": ID},
        {"conversation": ID},
        {"conversation": {"id": ID}},
        {"tools": [{"type": "file_search", "vector_store_ids": [ID]}]},
        {"tools": [{"type": "code_interpreter", "container": ID}]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [ID]}}]},
        {"tool_resources": {"code_interpreter": {"file_ids": [ID]}, "file_search": {"vector_store_ids": []}}},
        {"tool_resources": {"file_search": {"vector_stores": [{"file_ids": [ID]}]}}},
        {"input": [{"type": "item_reference", "id": ID}]},
        {"input": [{"id": ID}]},
        {"input": [{"type": None, "id": ID}]},
        {"input": [{"type": "image_generation_call", "id": ID, "status": "completed"}]},
        {"prompt": {"id": ID, "version": "2"}},
        {"prompt": {"id": "pmpt_1", "variables": {"doc": {"type": "input_file", "file_id": ID}}}},
        {"messages": [{"role": "assistant", "audio": {"id": ID}}]},
        {"messages": [{"role": "assistant", "audio": {"id": ID, "junk": 1}}]},
        {"data_source": {"source": {"type": "file_id", "id": ID}}},
        {"images": [{"file_id": ID}]},
        {"image": ID},
        {"input_reference": {"file_id": ID}},
        {"video": {"id": ID}},
        {"an_unknown_member": {"of_tomorrow": [ID]}},
        {"voice": {"id": ID}},
        {"requests": [{"params": {"messages": [{"content": [{"source": {"type": "file", "file_id": ID}}]}]}}]},
    ],
)  # fmt: skip
def test_a_body_that_names_an_object_is_found_out(body: dict[str, object]) -> None:
    found = References()
    raw = json.dumps(body).encode()

    read_json(raw, found)

    assert ID in found.named
    assert may_name_any(body, raw, "responses") or "image" in body or "an_unknown_member" in body


@pytest.mark.parametrize(
    "raw",
    [
        b'{"input":[{"file_id":"%b","file_id":null}]}',
        b'{"input":[{"file_id":"%b","file_id":"file-mine"}]}',
        b'{"input":[{"file\\u005fid":"%b"}]}',
        b'{"input":[{"FILE\\u005fID":"%b"}]}',
        b'{"messages":[{"content":[{"file_id":"%b"}],"content":"hi"}],"temperature":1e9}',
    ],
)
def test_no_member_hides_behind_another(raw: bytes) -> None:
    found, body = References(), raw % ID.encode()

    read_json(body, found)

    assert ID in found.named
    assert may_name_any(json.loads(body), body, "chat")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": ID}]},
        {"input": ID},
        {"input": [ID, ID]},
        {"metadata": {"file_id": ID}},
        {"messages": [], "user": ID, "prompt_cache_key": "conv_1234567890", "safety_identifier": "run_1234567890"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"file_id": {"enum": [ID]}}}}}]},
        {"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": "{}"}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "input": {"customer_id": "7"}}]}]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
        {"documents": [{"doc_id": "a", "text": "b"}], "query": "c"},
        {"model": "video-1234567"},
        {"requests": [{"custom_id": "run-2026-11-25"}]},
        {"prompt": "once upon a time"},
    ],
)  # fmt: skip
def test_a_body_that_only_speaks_of_such_names_names_nothing(body: dict[str, object]) -> None:
    found = References()

    read_json(json.dumps(body).encode(), found)

    assert (list(found.named), found.mentioned) == ([], set())


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_plain_chat_is_not_read_twice(separators: tuple[str, str]) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the id of a thread"},
    ]
    body = {"model": "m", "messages": messages}

    assert not may_name_any(body, json.dumps(body, separators=separators).encode(), "chat")


@pytest.mark.parametrize("depth", [200, 300, 600])
def test_a_body_that_is_deeper_than_orjson_writes_is_read(depth: int) -> None:
    """Regression: beyond 254 levels every tenant could have a 500 and a traceback in the log."""
    raw = b'{"x":%b%b%b}' % (b"[" * depth, b'{"file_id":"%b"}' % ID.encode(), b"]" * depth)
    plain = b'{"x":%b%b}' % (b"[" * depth, b"]" * depth)
    found = References()

    assert may_name_any(orjson.loads(raw), raw, "chat")
    assert not may_name_any(orjson.loads(plain), plain, "chat")
    read_json(raw, found)
    assert ID in found.named


def test_items_that_are_sent_along_are_mentioned():
    found = References()

    read_json(json.dumps({"input": [{"type": "message", "id": "msg_12345678", "content": "hi"}]}).encode(), found)

    assert (list(found.named), found.mentioned) == ([], {"msg_12345678"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("file_id", ID), ("image[file_id]", ID), ("files[0][file_id]", ID), ("file_ids[]", ID), ("video[id]", ID), ("image", ID),
     ("input_reference", json.dumps({"file_id": ID}))],
)  # fmt: skip
def test_a_field_of_a_form_that_names_an_object_is_found_out(name: str, value: str) -> None:
    found = References()

    others = [FormField("purpose", b"vision", True), FormField("metadata[file_id]", b"x", True)]

    read_fields([FormField(name, value.encode(), True), *others], found)

    assert list(found.named) == [ID]


def test_a_field_that_hides_its_end_is_refused():
    with pytest.raises(BadRequest, match="too long"):
        read_fields([FormField("file_id", b"file-1", False)], References())


def test_what_is_in_a_file_is_no_field():
    found = References()

    read_fields([FormField("file", json.dumps({"file_id": ID}).encode(), True, is_file=True)], found)

    assert not found.named


@pytest.mark.parametrize("name", ["ft:m:x::y", "FT:m:x::y", " Ft:m:x::y", "up/fT:m:x::y "])
def test_a_model_that_was_made_is_one_in_any_spelling(name: str) -> None:
    found = References()

    read_json(json.dumps({"grader": {"model": name}}).encode(), found)

    assert found.models == {name}


def test_a_file_that_stands_for_a_variable_of_a_prompt_is_a_reference_whatever_its_id_looks_like():
    found = References()
    variables = {"doc": {"type": "input_file", "file_id": "file-abc"}, "file_id": "words", "ticket": {"file_id": "x"}}

    read_json(json.dumps({"prompt": {"id": "pmpt_1", "variables": variables}}).encode(), found)

    assert set(found.named) == {"pmpt_1", "file-abc", "x"}


def test_queries_name_objects():
    found = References()

    read_query(
        f"after=x-1&before=x-2&limit=20&include[]=file_search_call.results&metadata[k]=v&thing={ID}&%66ile_id=x-3",
        found,
    )

    assert set(found.named) == {"x-1", "x-2", "x-3", ID}


def test_the_lines_of_a_batch_are_requests():
    found = References()
    lines = [
        b"--boundary\r\n",
        json.dumps({"custom_id": "1", "url": "/v1/chat/completions", "body": {"messages": []}}).encode(),
        b"\xef\xbb\xbf" + json.dumps({"custom_id": "2", "body": {"previous_response_id": "resp_1"}}).encode(),
        json.dumps({"custom_id": "3", "body": {"model": "ft:gpt-4o:x::y"}}).encode(),
    ]

    read_lines(lines, found)

    assert (list(found.named), found.models) == (["resp_1"], {"ft:gpt-4o:x::y"})


def test_a_reply_shows_ids_and_the_words_in_it_do_not_count():
    reply = {
        "id": "batch_1", "output_file_id": "file-2", "error_file_id": None, "result_files": ["file-3"], "fine_tuned_model": "ft:m",
        "metadata": {"file_id": "file-x"}, "organization_id": "org-1", "tools": [{"parameters": {"id": "file-y"}}],
        "item": {"ticket_id": "T-1"}, "call_id": "call_1",
    }  # fmt: skip

    assert set(ids_in(reply)) == {"batch_1", "file-2", "file-3", "ft:m"}
