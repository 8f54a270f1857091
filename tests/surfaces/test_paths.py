"""Request targets are resolved once, for matching and for the upstream alike."""

from __future__ import annotations

import pytest

from hookline.errors import BadRequest
from hookline.paths import RequestTarget, resolve_target

RESOLVED = {
    "/v1/chat/completions": ("/v1/chat/completions", ""),
    "/v1/files?limit=2&after=a%2Fb": ("/v1/files", "limit=2&after=a%2Fb"),
    "/v1/files?x=/../..": ("/v1/files", "x=/../.."),
    "/v1/a/../files": ("/v1/files", ""),
    "/v1/./files": ("/v1/files", ""),
    "/v1/../admin": ("/admin", ""),
    "/v1/%2e%2e/admin": ("/admin", ""),
    "/v1/%2E./admin": ("/admin", ""),
    "/v1/.%2e/admin": ("/admin", ""),
    "/../../v1/files": ("/v1/files", ""),
    "/v1/files/..": ("/v1/", ""),
    "/v1/files/.": ("/v1/files/", ""),
    "/v1/files/": ("/v1/files/", ""),
    "/v1//files": ("/v1/files", ""),
    "//v1/files": ("/v1/files", ""),
    "/": ("/", ""),
    "/v1/...": ("/v1/...", ""),
    "/v1/.hidden": ("/v1/.hidden", ""),
    "/v1/models/a%2Fb": ("/v1/models/a%2Fb", ""),
    "/v1/models/%67pt%20x": ("/v1/models/%67pt%20x", ""),
    "/v1/x%252e%252e/y": ("/v1/x%252e%252e/y", ""),
    "http://evil.example:99/v1/files?a=b": ("/v1/files", "a=b"),
    "http://evil.example": ("/", ""),
    "http://evil.example?a": ("/", "a"),
    "http://evil.example/v1/../admin": ("/admin", ""),
    "*": ("*", ""),
}


@pytest.mark.parametrize(("raw", "resolved"), RESOLVED.items())
def test_target_is_resolved(raw, resolved):
    assert RequestTarget(*resolved) == resolve_target(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "/v1/a#b",
        "/v1/a?b#c",
        "/v1/..\\admin",
        "/v1/%zz",
        "/v1/%2",
        "/v1/..%2fadmin",
        "/v1/a%2F..%2Fadmin",
        "/v1/%2e%2e%5cadmin",
        "/v1/..;/admin",
        "/v1/%2e%2e;a=b/admin",
        "v1",
    ],
)
def test_target_that_hides_something_is_refused(raw):
    with pytest.raises(BadRequest):
        resolve_target(raw)


@pytest.mark.parametrize(
    "path", [b"/v1/../admin/keys", b"/v1/%2e%2e/admin", b"/v1", b"/", b"/v2/files", b"/V1/files", b"/v1/.."]
)
async def test_nothing_outside_v1_becomes_a_call(open_door, path):
    door = await open_door()

    reply = await door.ask(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)

    assert (reply.status, door.pipeline.calls) == (404, [])


async def test_path_and_query_reach_the_call_byte_for_byte(open_door):
    door = await open_door()

    await door.ask(b"GET http://other/v1/x/../files/a%2fb%20c?q=%41+b&&z HTTP/1.1\r\nhost: x\r\n\r\n")

    (call,) = door.pipeline.calls
    assert (call.method, call.path, call.query) == ("GET", "/v1/files/a%2fb%20c", "q=%41+b&&z")


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/%63hat/completions",
        b"/v1/chat%2Fcompletions",
        b"/v1//chat/completions",
        b"/v1/x/../chat/completions",
        b"/v1/chat/completions/",
        b"/v1/Chat/Completions",
        b"/v1/chat/completions;x=1",
        b"/v1/chat/completions%20",
        b"/v1/%2fchat/completions",
        b"/v1/chat/completions%2F",
    ],
)
async def test_endpoint_is_known_however_its_path_is_spelled(open_door, path):
    door = await open_door()

    await door.ask(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % path)

    assert [call.endpoint for call in door.pipeline.calls] == ["chat"]


async def test_a_last_slash_is_not_sent_on_where_it_means_nothing(open_door):
    door = await open_door()

    for path in (b"/v1/chat/completions/", b"/v1/files/"):
        await door.ask(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % path)

    assert [(call.endpoint, call.path) for call in door.pipeline.calls] == [
        ("chat", "/v1/chat/completions"),
        ("relay", "/v1/files/"),
    ]
