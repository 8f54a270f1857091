"""HTTP manners: ids, methods, versions, headers, CORS, Hookline's own paths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from hookline.call import Call
from hookline.errors import BadRequest, RateLimited, StartupError
from hookline.host import RouteRequest
from hookline.reply import Reply
from hookline.surfaces.cors import Cors
from hookline.surfaces.routes import Routes


def get(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"host: gateway", *headers]) + b"\r\n\r\n"


@pytest.mark.parametrize("given", [b"abc-1.2_3", b"x" * 128])
async def test_sane_request_id_of_the_client_is_kept(open_door, given):
    door = await open_door()

    reply = await door.ask(get(b"/v1/x", b"x-request-id: " + given))

    assert reply.headers["x-request-id"] == given.decode() == door.pipeline.calls[0].id


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b'"', b"a\xc3\xa9", b"<script>"])
async def test_other_request_ids_are_replaced(open_door, given):
    door = await open_door()

    reply = await door.ask(get(b"/v1/x", b"x-request-id: " + given))

    assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "data", [get(b"/healthz"), get(b"/nothing"), get(b"/v1/x"), get(b"/v1/x", method=b"TRACE"), b"\x00\r\n\r\n"]
)
async def test_every_reply_has_an_id_and_a_date(open_door, data):
    door = await open_door()

    reply = await door.ask(data)

    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["date"].endswith("GMT")


async def test_error_of_a_call_keeps_its_headers(open_door):
    async def answer(call: Call) -> Reply:
        raise RateLimited("slow down", retry_after_s=3)

    door = await open_door(answer)

    reply = await door.ask(get(b"/v1/x"))

    assert (reply.status, reply.headers["retry-after"]) == (429, "3")
    assert orjson.loads(reply.body)["error"]["type"] == "rate_limit_error"


async def test_error_that_quotes_bytes_which_are_no_text_is_sent(open_door):
    """Such a header is kept as surrogates, which JSON has no form for: the connection was closed without a reply."""

    async def answer(call: Call) -> Reply:
        raise BadRequest(f'"{call.headers["x-word"]}" is no word', param="x-word")

    door = await open_door(answer)

    reply = await door.ask(get(b"/v1/x", b"x-word: h\xf6ch"))

    assert reply.status == 400
    assert orjson.loads(reply.body)["error"]["message"] == r'"h\udcf6ch" is no word'


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/healthz", b"/nothing"])
async def test_trace_and_connect_are_405_everywhere(open_door, method, path):
    door = await open_door()

    reply = await door.ask(get(b"h:1" if method == b"CONNECT" else path, method=method))

    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in reply.headers["allow"]
    assert door.pipeline.calls == []


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz"])
async def test_wrong_method_on_an_own_path_is_405_with_allow(open_door, path):
    door = await open_door()

    reply = await door.ask(get(path, method=b"DELETE"))

    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"PUT", b"PATCH", b"PROPFIND"])
async def test_every_method_below_v1_is_a_call(open_door, method):
    door = await open_door()

    await door.ask(get(b"/v1/chat/completions", method=method))

    assert [(call.method, call.endpoint) for call in door.pipeline.calls] == [(method.decode(), "relay")]


async def test_unknown_path_is_404_and_says_where_the_api_is(open_door):
    door = await open_door()

    reply = await door.ask(get(b"/chat/completions", method=b"POST"))

    error = orjson.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["type"]) == (404, "unknown_url", "invalid_request_error")
    assert "/v1/" in error["message"]


async def test_readyz_says_what_is_missing(open_door):
    missing: list[str] = ["no provider has a key"]
    door = await open_door(find_what_is_missing=lambda: missing)

    before = await door.ask(get(b"/readyz"))
    missing.clear()
    after = await door.ask(get(b"/readyz"))

    assert (before.status, orjson.loads(before.body)["missing"]) == (503, ["no provider has a key"])
    assert after.status == 200


async def test_head_gets_the_head_and_no_body(open_door):
    door = await open_door()
    client = await door.connect()

    await client.send(get(b"/healthz", method=b"HEAD"))
    own = await client.read_reply(is_head=True)
    await client.send(get(b"/v1/files/f/content", method=b"HEAD"))
    relayed = await client.read_reply(is_head=True)
    next_one = await client.ask(get(b"/healthz"))

    assert [own.status, relayed.status, next_one.status] == [200, 200, 200]
    assert own.headers["content-length"] == next_one.headers["content-length"]
    assert door.pipeline.calls[0].method == "HEAD"


async def test_head_of_a_stream_does_not_read_the_stream(open_door):
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body of a HEAD was read")
        yield b""

    async def answer(call: Call) -> Reply:
        return Reply(200, {}, body())

    door = await open_door(answer)
    client = await door.connect()

    await client.send(get(b"/v1/x", method=b"HEAD"))
    reply = await client.read_reply(is_head=True)
    next_one = await client.ask(get(b"/healthz"))

    assert (reply.status, next_one.status, door.pipeline.ended) == (200, 200, ["ok"])


@pytest.mark.parametrize("status", [204, 304])
async def test_bodyless_status_has_no_length(open_door, status):
    async def answer(call: Call) -> Reply:
        return Reply(status)

    door = await open_door(answer)
    client = await door.connect()

    reply = await client.ask(get(b"/v1/x"))
    next_one = await client.ask(get(b"/healthz"))

    assert (reply.status, next_one.status) == (status, 200)
    assert "content-length" not in reply.headers
    assert "transfer-encoding" not in reply.headers


async def test_options_is_answered_and_never_relayed(open_door):
    door = await open_door()

    inside = await door.ask(get(b"/v1/chat/completions", method=b"OPTIONS"))
    own = await door.ask(get(b"/healthz", method=b"OPTIONS"))
    server = await door.ask(get(b"*", method=b"OPTIONS"))
    nowhere = await door.ask(get(b"/nothing", method=b"OPTIONS"))

    assert [inside.status, own.status, server.status, nowhere.status] == [204, 204, 204, 404]
    assert "POST" in inside.headers["allow"]
    assert own.headers["allow"] == "GET, HEAD, OPTIONS"
    assert door.pipeline.calls == []


async def test_http_1_0_client_gets_no_chunks_and_a_close(open_door):
    async def body() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async def answer(call: Call) -> Reply:
        return Reply(200, {"content-type": "text/event-stream"}, body())

    door = await open_door(answer)

    reply = await door.ask(b"GET /v1/x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")

    assert reply.body == b"one two"
    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"


async def test_http_1_0_connection_is_kept_only_if_asked(open_door):
    door = await open_door()
    kept, dropped = await door.connect(), await door.connect()

    first = await kept.ask(b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    second = await kept.ask(b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    other = await dropped.ask(b"GET /healthz HTTP/1.0\r\n\r\n")

    assert [first.headers["connection"], second.headers["connection"]] == ["keep-alive", "keep-alive"]
    assert other.headers["connection"] == "close"
    assert await dropped.is_closed()


async def test_connection_close_of_the_client_is_obeyed(open_door):
    door = await open_door()
    client = await door.connect()

    reply = await client.ask(get(b"/v1/x", b"connection: close"))

    assert reply.headers["connection"] == "close"
    assert await client.is_closed()


async def test_upgrade_that_is_not_understood_is_ignored_and_the_connection_ends(open_door):
    door = await open_door()
    client = await door.connect()

    reply = await client.ask(get(b"/v1/x", b"connection: upgrade", b"upgrade: websocket") + b"\x81\x00")

    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await client.is_closed()


async def test_reply_headers_can_neither_reframe_nor_split_the_reply(open_door, caplog):
    async def answer(call: Call) -> Reply:
        headers = {
            "Content-Length": "3",
            "Transfer-Encoding": "gzip",
            "Connection": "x",
            "X-Request-Id": "theirs",
            "x-split": "a\r\nset-cookie: b",
            "x-kept": "yes",
        }
        return Reply(200, headers, b"hello")

    door = await open_door(answer)

    reply = await door.ask(get(b"/v1/x"))

    assert (reply.body, reply.headers["x-kept"], reply.headers["content-length"]) == (b"hello", "yes", "5")
    assert {"transfer-encoding", "connection", "x-split", "set-cookie"}.isdisjoint(reply.headers)
    assert reply.headers["x-request-id"] == door.pipeline.calls[0].id
    assert "x-split" in caplog.text


async def test_date_of_a_reply_is_kept(open_door):
    async def answer(call: Call) -> Reply:
        return Reply(200, {"Date": "then"}, b"")

    door = await open_door(answer)

    assert (await door.ask(get(b"/v1/x"))).headers["date"] == "then"


async def test_pipeline_that_breaks_its_promise_is_a_500_and_the_connection_lives(open_door, caplog):
    door = await open_door()

    class Broken:
        async def run(self, call: Call, deliver: object) -> None:
            raise RuntimeError("a secret")

    client = await door.connect()
    door.serve(pipeline=Broken())
    reply = await client.ask(get(b"/v1/x"))

    assert reply.status == 500
    assert b"secret" not in reply.body
    assert (await client.ask(get(b"/healthz"))).status == 200


class TestCors:
    async def test_is_off_by_default(self, open_door):
        door = await open_door()

        reply = await door.ask(get(b"/v1/x", b"origin: https://app.example"))
        preflight = await door.ask(
            get(b"/v1/x", b"origin: https://app.example", b"access-control-request-method: POST", method=b"OPTIONS")
        )

        assert not [name for name in {**reply.headers, **preflight.headers} if name.startswith("access-control")]

    async def test_allowed_origin_may_ask_and_read_errors_too(self, open_door):
        door = await open_door(cors=Cors(("https://app.example",)))

        preflight = await door.ask(
            get(
                b"/v1/chat/completions",
                b"origin: https://app.example",
                b"access-control-request-method: POST",
                b"access-control-request-headers: authorization, content-type",
                method=b"OPTIONS",
            )
        )
        error = await door.ask(get(b"/nothing", b"origin: https://app.example"))

        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert error.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in error.headers["access-control-expose-headers"]
        assert error.headers["vary"] == "origin"

    async def test_other_origin_gets_nothing(self, open_door):
        door = await open_door(cors=Cors(("https://app.example",)))

        preflight = await door.ask(
            get(b"/v1/x", b"origin: https://evil.example", b"access-control-request-method: POST", method=b"OPTIONS")
        )

        assert not [name for name in preflight.headers if name.startswith("access-control")]

    async def test_page_from_elsewhere_can_not_post_what_needs_no_preflight(self, open_door):
        door = await open_door()
        body = b'{"model":"m"}'
        head = (b"origin: https://evil.example", b"content-type: text/plain", b"content-length: %d" % len(body))

        foreign = await door.ask(get(b"/v1/chat/completions", *head, method=b"POST") + body)
        same = await door.ask(get(b"/v1/chat/completions", b"origin: http://gateway", *head[1:], method=b"POST") + body)
        door.serve(cors=Cors(("*",)))
        allowed = await door.ask(get(b"/v1/chat/completions", *head, method=b"POST") + body)

        assert [foreign.status, same.status, allowed.status] == [403, 200, 200]


class TestPluginRoutes:
    @staticmethod
    async def echo(request: RouteRequest) -> Reply:
        seen = [
            request.method,
            request.path,
            request.query,
            request.is_admin,
            request.is_loopback,
            request.body.decode(),
        ]
        return Reply(200, {"content-type": "application/json"}, orjson.dumps(seen))

    def routes(self, admin_key: str | None = "admin-key") -> Routes:
        routes = Routes(admin_key)
        routes.add("GET", "/open", self.echo, access="open")
        routes.add("POST", "/open", self.echo, access="open")
        routes.add("GET", "/local", self.echo, access="loopback")
        routes.add("GET", "/admin/keys", self.echo)
        routes.add("GET", "/pages/*", self.echo, access="open")
        return routes

    async def test_open_route_gets_the_request(self, open_door):
        door = await open_door(routes=self.routes())

        reply = await door.ask(get(b"/open?a=b", b"content-length: 2", method=b"POST") + b"hi")

        assert orjson.loads(reply.body) == ["POST", "/open", "a=b", False, True, "hi"]

    async def test_wrong_method_is_405_with_the_routes_own_methods(self, open_door):
        door = await open_door(routes=self.routes())

        reply = await door.ask(get(b"/open", method=b"DELETE"))

        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")

    async def test_route_takes_everything_below_it(self, open_door):
        door = await open_door(routes=self.routes())

        below = await door.ask(get(b"/pages/a/%62"))
        beside = await door.ask(get(b"/pages"))

        assert orjson.loads(below.body)[1] == "/pages/a/b"
        assert beside.status == 404

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (b"x-a: 1", 401),
            (b"authorization: Bearer wrong", 403),
            (b"authorization: Basic admin-key", 403),
            (b"authorization: Bearer admin-key", 200),
            (b"authorization: bearer  admin-key", 200),
        ],
    )
    async def test_admin_route_wants_the_admin_key(self, open_door, header, status):
        door = await open_door(routes=self.routes())

        assert (await door.ask(get(b"/admin/keys", header))).status == status

    async def test_without_an_admin_key_there_are_no_admin_routes(self, open_door):
        door = await open_door(routes=self.routes(None))

        reply = await door.ask(get(b"/admin/keys", b"authorization: Bearer None"))
        options = await door.ask(get(b"/admin/keys", method=b"OPTIONS"))

        assert [reply.status, options.status] == [404, 404]

    @pytest.mark.parametrize("header", [b"x-forwarded-for: 127.0.0.1", b"forwarded: for=127.0.0.1", b"via: 1.1 nginx"])
    async def test_loopback_route_is_not_for_those_behind_a_reverse_proxy(self, open_door, header):
        door = await open_door(routes=self.routes())

        direct = await door.ask(get(b"/local"))
        proxied = await door.ask(get(b"/local", header))

        assert [direct.status, proxied.status] == [200, 401]

    async def test_route_that_breaks_is_a_500_that_says_nothing(self, open_door, caplog):
        async def broken(request: RouteRequest) -> Reply:
            raise ValueError("a secret")

        routes = Routes()
        routes.add("GET", "/broken", broken, access="open")
        door = await open_door(routes=routes)

        reply = await door.ask(get(b"/broken"))

        assert reply.status == 500
        assert b"secret" not in reply.body
        assert "/broken" in caplog.text

    @pytest.mark.parametrize("path", ["/healthz", "/v1", "/v1/x", "relative", "/twice"])
    def test_route_that_is_not_a_plugins_is_refused_at_start(self, path):
        routes = Routes()
        routes.add("GET", "/twice", self.echo)

        with pytest.raises(StartupError, match=path):
            routes.add("get", path, self.echo)

    async def test_reload_replaces_routes_for_the_next_request(self, open_door):
        door = await open_door()
        client = await door.connect()

        before = await client.ask(get(b"/open"))
        door.serve(routes=self.routes())
        after = await client.ask(get(b"/open"))

        assert [before.status, after.status] == [404, 200]


class TestDraining:
    async def test_idle_connections_close_and_running_calls_finish(self, open_door):
        gate = asyncio.Event()

        async def answer(call: Call) -> Reply:
            await gate.wait()
            return Reply(200, {}, b"done")

        door = await open_door(answer)
        idle, busy = await door.connect(), await door.connect()
        await idle.ask(get(b"/healthz"))
        await busy.send(get(b"/v1/x"))
        await door.pipeline.is_running.wait()

        door.server.close()
        draining = asyncio.ensure_future(door.front.drain(5.0))
        assert await idle.is_closed()
        gate.set()
        reply = await busy.read_reply()

        assert (reply.body, reply.headers["connection"]) == (b"done", "close")
        assert await draining
        assert door.front.connection_count == 0

    @pytest.mark.parametrize(("idle_s", "status"), [(0.0, 503), (5.0, 200)])
    async def test_readyz_says_that_a_process_stops_unless_a_successor_serves(self, open_door, idle_s, status):
        door = await open_door()
        client = await door.connect()
        await client.ask(get(b"/healthz"))
        await client.send(b"GET /readyz HTTP/1.1\r\n")
        (connection,) = door.front._connections
        while connection.phase != "head":  # noqa: ASYNC110 - nothing tells when a part of a head has arrived
            await asyncio.sleep(0)

        draining = asyncio.ensure_future(door.front.drain(5.0, idle_s=idle_s))
        reply = await client.ask(b"host: x\r\n\r\n")

        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert await draining

    async def test_drain_gives_up_after_its_time_and_abort_ends_the_rest(self, open_door):
        async def answer(call: Call) -> Reply:
            await asyncio.Event().wait()
            return Reply(200)

        door = await open_door(answer)
        client = await door.connect()
        await client.send(get(b"/v1/x"))
        await door.pipeline.is_running.wait()

        drained = await door.front.drain(0.01)
        door.front.abort()

        assert not drained
        assert await door.front.drain(5.0)

    async def test_http_1_0_client_sees_a_reset_where_a_cut_stream_would_look_complete(self, open_door):
        """Symptom: behind a proxy that speaks HTTP/1.0 to us, a stream that was cut after `drain_s` ended for its client as a whole one does."""

        async def events() -> AsyncIterator[bytes]:
            yield b"data: {}\n\n"
            await asyncio.Event().wait()

        async def answer(call: Call) -> Reply:
            return Reply(200, {"content-type": "text/event-stream"}, events())

        door = await open_door(answer)
        client = await door.connect()
        await client.send(get(b"/v1/x").replace(b"HTTP/1.1", b"HTTP/1.0"))
        await client.reader.readuntil(b"data: {}\n\n")

        door.front.abort()

        with pytest.raises(ConnectionResetError):
            await client.reader.read()

    async def test_drain_of_an_idle_front_returns_at_once(self, open_door):
        door = await open_door()

        assert await door.front.drain(0.0)
