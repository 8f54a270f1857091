"""Which reader a request's body gets: `call.load`.

Lives here: the choice by endpoint and content type. Elsewhere: JSON (json_body.py), everything else (upload.py).
Idea: whatever can be JSON is read as JSON, because only then does the chain see its model; a body that names a model must not pass as
bytes that don't."""

from __future__ import annotations

from aiohttp import hdrs

from hookline.call import Call
from hookline.content_type import kind_of
from hookline.errors import UnsupportedMedia
from hookline.paths import fold
from hookline.surfaces.content_coding import read_pieces, read_whole
from hookline.surfaces.exchange import Exchange, too_large
from hookline.surfaces.json_body import set_json_body
from hookline.surfaces.settings import FrontSettings, Serving
from hookline.surfaces.spool import SpoolRoom
from hookline.surfaces.stored_objects import refuse_stored_member, refuse_stored_route
from hookline.surfaces.upload import Pieces, load_upload


async def load_json(exchange: Exchange, settings: FrontSettings, serving: Serving, room: SpoolRoom, call: Call) -> None:
    """`call.load` of the endpoints that take JSON and nothing else. Raises ApiError."""
    kind = kind_of(exchange.headers.get(hdrs.CONTENT_TYPE, ""))
    if kind == "other":
        raise UnsupportedMedia("this endpoint takes JSON: send it with `content-type: application/json`")
    body = await read_whole(exchange, settings.max_body_bytes, room)
    set_json_body(call, body, serving.default_completion_model)
    if serving.refuses_stored_objects(call.principal.tenant):
        refuse_stored_member(call)


async def load_any(exchange: Exchange, settings: FrontSettings, serving: Serving, room: SpoolRoom, call: Call) -> None:
    """`call.load` of every other route. Raises ApiError."""
    if serving.refuses_stored_objects(call.principal.tenant):
        refuse_stored_route(exchange.method, fold(call.path))
    if not exchange.has_body:
        return
    kind = kind_of(exchange.headers.get(hdrs.CONTENT_TYPE, ""))
    if kind == "json":
        set_json_body(call, await read_whole(exchange, settings.max_body_bytes, room), None)
    elif kind == "vague":
        await _load_vague(exchange, settings, room, call)
    else:
        await load_upload(exchange, room, read_pieces(exchange, settings.max_upload_bytes), call)


async def _load_vague(exchange: Exchange, settings: FrontSettings, room: SpoolRoom, call: Call) -> None:
    """A body whose type says nothing: JSON if it begins like an object, else bytes."""
    pieces = read_pieces(exchange, settings.max_upload_bytes)
    start, is_json = [], False
    size_bytes = 0
    async for piece in pieces:
        start.append(piece)
        size_bytes += len(piece)
        is_json = is_json or piece.lstrip().startswith(b"{")
        if not is_json and not piece.isspace():
            break
        if size_bytes > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        exchange.keep(piece, room)
    if is_json:
        set_json_body(call, b"".join(start), None)
    else:
        await load_upload(exchange, room, _joined(start, pieces), call)


async def _joined(start: list[bytes], rest: Pieces) -> Pieces:
    try:
        for piece in start:
            yield piece
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()
