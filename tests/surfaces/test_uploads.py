"""Multipart and binary bodies: the model is found, the bytes are kept or pass through, nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline.call import Call
from hookline.errors import BadRequest, Forbidden
from hookline.reply import Reply
from hookline.surfaces.multipart import ModelFinder, get_boundary
from hookline.surfaces.settings import FrontSettings

MIB = 1 << 20
FILE = bytes(range(256)) * 16


def form(*parts: tuple[str, bytes], boundary: bytes = b"b0undary") -> bytes:
    body = b""
    for disposition, value in parts:
        body += b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, disposition.encode(), value)
    return body + b"--%b--\r\n" % boundary


def post(path: str, body: bytes, content_type: str = "multipart/form-data; boundary=b0undary", *extra: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        f"content-length: {len(body)}",
        f"content-type: {content_type}",
        *extra,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def audio(model: bytes = b"whisper-1", data: bytes = FILE) -> bytes:
    return form(('name="file"; filename="a.wav"', data), ('name="model"', model), ('name="language"', b"en"))


def list_nameless_files() -> set[str]:
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.islink(link)]
    return {name for name in links if name.endswith("(deleted)")}


@pytest.fixture
def spooled_files():
    """The temporary files opened since the test began (the test runner has some, too)."""
    before = list_nameless_files()
    return lambda: sorted(list_nameless_files() - before)


async def read_upload(call: Call, model: str | None = None) -> bytes:
    assert call.upload is not None
    return b"".join([chunk async for chunk in call.upload.chunks(model)])


@pytest.mark.parametrize(
    "body",
    [
        audio(),
        form(('name="model"', b"whisper-1"), ('name="file"; filename="a"', FILE)),
        b"preamble\r\n" + audio() + b"epilogue",
        form(("name=model", b"whisper-1"), ('NAME="file"', FILE)),
    ],
    ids=["model after the file", "model first", "with preamble and epilogue", "unquoted names"],
)
async def test_model_of_a_form_is_found_and_its_bytes_are_untouched(open_door, body):
    door = await open_door()

    reply = await door.ask(post("/v1/audio/transcriptions", body))

    (call,) = door.pipeline.calls
    assert (reply.status, call.model, call.payload, door.pipeline.bodies) == (200, "whisper-1", None, [body])
    assert call.upload is not None
    assert (call.upload.content_length, call.upload.is_replayable) == (len(body), True)
    assert call.upload.content_type == "multipart/form-data; boundary=b0undary"


async def test_model_of_a_form_is_rewritten_in_place(open_door):
    rewritten = []

    async def answer(call: Call) -> Reply:
        rewritten.append(await read_upload(call, "a-longer-name"))
        rewritten.append(await read_upload(call, "x"))
        return Reply(200)

    door = await open_door(answer)

    await door.ask(post("/v1/audio/transcriptions", audio()))

    assert rewritten == [audio(b"a-longer-name"), audio(b"x")]


async def test_form_larger_than_memory_is_spooled_and_given_back_whole(open_door, spooled_files):
    data = os.urandom(5 * MIB)
    seen_files = []

    async def answer(call: Call) -> Reply:
        assert await read_upload(call) == await read_upload(call, "whisper-1")
        seen_files.extend(spooled_files())
        return Reply(200)

    door = await open_door(answer)

    reply = await door.ask(post("/v1/audio/transcriptions", audio(data=data)))

    assert door.pipeline.ended == ["ok"]
    assert (reply.status, door.pipeline.bodies == [audio(data=data)], len(seen_files)) == (200, True, 1)
    assert spooled_files() == []
    assert door.front.door._openai.room.used_bytes == 0


async def test_large_form_with_its_model_first_streams_through_once(open_door):
    data = os.urandom(8 * MIB)
    body = form(('name="model"', b"whisper-1"), ('name="file"; filename="a"', data))
    most_spooled = []

    async def answer(call: Call) -> Reply:
        assert call.upload is not None
        most_spooled.append(door.front.door._openai.room.used_bytes)
        with pytest.raises(RuntimeError, match="can't be sent again"):
            await read_upload(call)
        return Reply(200, {}, b"%d" % call.upload.is_replayable)

    door = await open_door(answer)

    reply = await door.ask(post("/v1/audio/transcriptions", body))

    assert (reply.body, door.pipeline.bodies == [body]) == (b"0", True)
    assert most_spooled[0] < 2 * MIB
    assert "connection" not in reply.headers  # read to its end: the connection goes on


async def test_binary_body_and_form_without_a_model_are_spooled_whole(open_door):
    door = await open_door()
    form_body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', FILE))

    await door.ask(post("/v1/files", form_body))
    await door.ask(post("/v1/uploads/u/parts", FILE, "audio/mpeg"))
    await door.ask(post("/v1/x", b"plain words", "text/plain"))

    assert [call.model for call in door.pipeline.calls] == [None, None, None]
    assert door.pipeline.bodies == [form_body, FILE, b"plain words"]
    assert all(call.upload is not None and call.upload.is_replayable for call in door.pipeline.calls)


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", ""])
async def test_bytes_that_might_have_been_json_have_the_limit_of_uploads(open_door, content_type):
    door = await open_door(limits=FrontSettings(max_body_bytes=1000))
    head = f"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n".encode()
    framed = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"

    binary = await door.ask(head + framed % (2000, b"\xff" * 2000))
    json = await door.ask(head + framed % (2000, b" " * 1000 + b'{"model":"m"}'.ljust(1000)))
    declared = await door.ask(post("/v1/x", b" " * 900 + b'{"model":"m"}'.ljust(1100), content_type))
    small = await door.ask(post("/v1/x", b"  \n" + b'{"model":"m"}', content_type))

    assert [binary.status, json.status, declared.status, small.status] == [200, 413, 413, 200]
    assert door.pipeline.bodies == [b"\xff" * 2000]
    assert [call.model for call in door.pipeline.calls] == [None, None, None, "m"]


BAD_FORMS = {
    "two models": form(('name="model"', b"a"), ('name="model"', b"b")),
    "two models, cases": form(('name="model"', b"a"), ('NAME="model"', b"b")),
    "an empty model": form(('name="model"', b"")),
    "a model that is no text": form(('name="model"', b"\xff\xfe")),
    "a model as large as a file": form(('name="model"', b"x" * 5000)),
    "no closing boundary": form(('name="model"', b"a"))[:-10],
    "no boundary at all": b"nothing",
    "an extended name": form(("name*=utf-8''model", b"a")),
    "a plain and an extended name": form(("name=\"file\"; name*=utf-8''model", b"a")),
    "two names": form(('name="file"; name="model"', b"a")),
    "no name": form(('filename="a"', b"a")),
    "no disposition": b"--b0undary\r\ncontent-type: text/plain\r\n\r\nx\r\n--b0undary--\r\n",
    "a folded header": b'--b0undary\r\ncontent-disposition: form-data;\r\n name="model"\r\n\r\nx\r\n--b0undary--\r\n',
    "headers without end": b"--b0undary\r\n" + b"x-a: b\r\n" * 3000,
    "bare line feeds": audio().replace(b"\r\n", b"\n"),
    "a boundary that goes on": b'--b0undaryX\r\ncontent-disposition: form-data; name="model"\r\n\r\nx\r\n--b0undary--\r\n',
    "a boundary after a bare LF": form(
        ('name="x"', b'a\n--b0undary\ncontent-disposition: form-data; name="model"\n\nb')
    ),
    "a boundary after a bare CR": form(
        ('name="x"', b'a\r--b0undary\r\ncontent-disposition: form-data; name="model"\r\n\r\nb')
    ),
    "a boundary right behind headers": form(
        ('name="x"', b'--b0undary\r\ncontent-disposition: form-data; name="model"\r\n\r\nb')
    ),
    "too many parts": form(*[('name="x"', b"")] * 1100),
}


@pytest.mark.parametrize("body", BAD_FORMS.values(), ids=BAD_FORMS.keys())
@pytest.mark.parametrize("piece_bytes", [1 << 20, 7])
async def test_form_that_can_be_read_in_two_ways_is_400(open_door, spooled_files, body, piece_bytes):
    door = await open_door()
    client = await door.connect()
    data = post("/v1/audio/transcriptions", body)

    for at in range(0, len(data), piece_bytes):
        client.writer.write(data[at : at + piece_bytes])
    reply = await client.read_reply()

    assert reply.status == 400
    assert orjson.loads(reply.body)["error"]["code"] in ("bad_multipart", "repeated_member", None)
    assert spooled_files() == []


async def test_second_model_in_what_streams_through_breaks_the_upload(open_door):
    door = await open_door()
    body = form(('name="model"', b"cheap"), ('name="file"', b"x" * (3 * MIB)), ('name="model"', b"dear"))

    reply = await door.ask(post("/v1/audio/transcriptions", body))

    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (400, "repeated_member")


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", 'multipart/form-data; boundary=""', "multipart/form-data; boundary=a; boundary=b", "multipart/form-data; boundary=" + "a" * 71],
)  # fmt: skip
def test_content_type_without_one_boundary_is_refused(content_type):
    with pytest.raises(BadRequest):
        get_boundary(content_type)


@given(
    st.lists(st.tuples(st.sampled_from(["file", "model2", "language"]), st.binary(max_size=60)), max_size=4),
    st.integers(0, 4),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_model_is_found_wherever_the_pieces_are_cut(parts, at, cuts):
    fields = [(f'name="{name}"', value) for name, value in parts]
    fields.insert(at, ('name="model"', b"the-model"))
    body = form(*fields)
    finder = ModelFinder(b"b0undary")

    position = 0
    while position < len(body):
        cut = cuts[position % len(cuts)]
        finder.feed(body[position : position + cut])
        position += cut

    assert (finder.model, finder.is_complete) == ("the-model", True)
    assert finder.value_at is not None
    assert body[slice(*finder.value_at)] == b"the-model"


async def test_upload_over_its_limit_is_413(open_door):
    door = await open_door(limits=FrontSettings(max_upload_bytes=MIB))
    body = audio(data=b"x" * (2 * MIB))

    declared = await door.ask(post("/v1/audio/transcriptions", body))
    chunked = await door.ask(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: audio/wav\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )

    assert [declared.status, chunked.status] == [413, 413]
    assert door.front.door._openai.room.used_bytes == 0


@pytest.mark.parametrize(
    ("path", "content_type", "head"),
    [
        ("/v1/files", "audio/wav", b""),
        ("/v1/chat/completions", "application/json", b'{"model":"m","messages":[]}'),
        ("/v1/other", "text/plain", b'{"model":"m"}'),
    ],
    ids=["upload", "json", "json by its look"],
)
async def test_bodies_together_over_the_spool_are_503_until_there_is_room(open_door, path, content_type, head):
    gate, has_come = asyncio.Event(), asyncio.Event()

    async def answer(call: Call) -> Reply:
        has_come.set()
        await gate.wait()
        return Reply(200)

    door = await open_door(answer, limits=FrontSettings(max_spool_bytes=3 * MIB))
    body = post(path, head + (b" " if head else b"x") * (2 * MIB), content_type)
    first = await door.connect()
    await first.send(body)
    await has_come.wait()

    refused = await door.ask(body)
    gate.set()
    served = await first.read_reply()
    again = await door.ask(body)

    assert [refused.status, served.status, again.status] == [503, 200, 200]
    assert orjson.loads(refused.body)["error"]["code"] == "spool_full"
    assert "retry-after" in refused.headers
    assert door.front.door._openai.room.used_bytes == 0


async def test_disk_that_refuses_is_503_and_names_no_folder(open_door, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is-not-there"))
    door = await open_door()

    reply = await door.ask(post("/v1/files", b"x" * (2 * MIB), "audio/wav"))

    assert (reply.status, reply.headers["retry-after"]) == (503, "2")
    assert b"is-not-there" not in reply.body
    assert "is-not-there" in caplog.text
    assert door.front.door._openai.room.used_bytes == 0


async def test_spool_is_given_back_when_the_client_goes_in_the_middle(open_door, spooled_files):
    door = await open_door()
    client = await door.connect()
    data = post("/v1/files", b"x" * (8 * MIB), "audio/wav")

    await client.send(data[: 4 * MIB])
    while not spooled_files():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    client.hang_up()
    await door.pipeline.has_ended.wait()
    while door.front.connection_count:  # noqa: ASYNC110
        await asyncio.sleep(0)

    assert spooled_files() == []
    assert door.front.door._openai.room.used_bytes == 0


async def test_spool_is_given_back_when_the_call_is_refused(open_door, spooled_files):
    async def answer(call: Call) -> Reply:
        raise Forbidden("no")

    door = await open_door(answer)

    reply = await door.ask(post("/v1/files", b"x" * (4 * MIB), "audio/wav"))
    while door.front.door._openai.room.used_bytes:  # noqa: ASYNC110
        await asyncio.sleep(0)

    assert (reply.status, spooled_files()) == (403, [])


class TestSeveralTenants:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/files"),
            ("POST", "/v1/files"),
            ("GET", "/v1/files/f-1/content"),
            ("GET", "/v1/%66iles"),
            ("POST", "/v1/uploads"),
            ("POST", "/v1/batches"),
            ("DELETE", "/v1/responses/r-1"),
            ("GET", "/v1/responses/r-1"),
            ("POST", "/v1/responses/r-1/cancel"),
            ("GET", "/v1/chat/completions"),
            ("POST", "/v1/chat/completions/c-1"),
            ("POST", "/v1/threads/t/runs"),
            ("GET", "/v1/vector_stores"),
            ("POST", "/v1/fine_tuning/jobs"),
            ("DELETE", "/v1/models/ft:1"),
            ("GET", "/v1/organization/admin_api_keys"),
            ("GET", "/v1/anything/else"),
            ("POST", "/v1/Batches"),
            ("POST", "/v1/batches;x"),
            ("POST", "/v1/batches%20"),
            ("POST", "/v1/%2fbatches/"),
        ],
    )
    async def test_route_that_names_stored_objects_is_403(self, open_door, method, path):
        door = await open_door(tenants=frozenset({"acme", "globex"}))

        reply = await door.ask(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        alone = await open_door()
        allowed = await alone.ask(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

        assert (reply.status, allowed.status) == (403, 200)
        assert orjson.loads(reply.body)["error"]["code"] == "stored_objects_not_shared"

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/chat/completions",
            "/v1/responses",
            "/v1/embeddings",
            "/v1/audio/speech",
            "/v1/images/generations",
            "/v1/rerank",
        ],
    )
    async def test_route_that_names_none_is_served(self, open_door, path):
        door = await open_door(tenants=frozenset({"acme", "globex"}))

        assert (await door.ask(post(path, b'{"model":"m"}', "application/json"))).status == 200

    @pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/", "/v1/Responses"])
    @pytest.mark.parametrize("member", ["previous_response_id", "conversation"])
    async def test_response_that_continues_a_stored_one_is_403(self, open_door, member, path):
        door = await open_door(tenants=frozenset({"acme", "globex"}))

        reply = await door.ask(post(path, b'{"model":"m","%b":"id"}' % member.encode(), "application/json"))

        assert reply.status == 403

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"m","input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}',
            b'{"model":"m","input":[{"type":"item_reference","id":"msg_1"}]}',
            b'{"model":"m","input":[{"id":"msg_1"}]}',
            b'{"model":"m","input":[{"type":null,"id":"msg_1"}]}',
            b'{"model":"m","input":[{"type":"image_generation_call","id":"ig_1"}]}',
            b'{"model":"m","messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}',
            b'{"model":"m","tools":[{"type":"shell","environment":{"skills":[{"type":"skill_reference","skill_id":"skill_1"}]}}]}',
            b'{"model":"m","tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]}',
            b'{"model":"m","tools":[{"type":"code_interpreter","container":"cntr_1"}]}',
            b'{"model":"m","conversation":{"id":"conv_1"}}',
            b'{"model":"m","prompt":{"id":"pmpt_1"}}',
        ],
    )
    async def test_a_body_that_names_a_stored_object_is_403(self, open_door, body):
        """One tenant's file in another tenant's prompt is a read of it."""
        door = await open_door(tenants=frozenset({"acme", "globex"}))

        assert (await door.ask(post("/v1/responses", body, "application/json"))).status == 403

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"m","messages":[{"role":"user","content":"file_id"}],"metadata":{"file_id":"x"}}',
            b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"file_id":{"type":"string"}}}}}]}',
            b'{"model":"m","tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}',
        ],
    )
    async def test_a_body_that_only_speaks_of_such_names_is_served(self, open_door, body):
        door = await open_door(tenants=frozenset({"acme", "globex"}))

        assert (await door.ask(post("/v1/chat/completions", body, "application/json"))).status == 200
