"""The OpenAI door: a request below `/v1` becomes a call, the call's reply goes back.

Lives here: which endpoint a path is, who may come in by it at all. Elsewhere: bodies (request_body.py), `/v1/models` (models.py), everything
that happens to the call (pipeline.py).
Idea: the door only builds the `Call`; the body is read by `call.load`, which the pipeline calls after it knows who asks."""

from __future__ import annotations

from functools import partial
from typing import Final

from aiohttp import hdrs
from multidict import istr

from hookline.call import Call
from hookline.content_type import kind_of
from hookline.deadline import TIMEOUT_HEADER, read_timeout_s
from hookline.errors import Forbidden
from hookline.host import Clock
from hookline.paths import RequestTarget, endpoint_of
from hookline.surfaces.exchange import Exchange
from hookline.surfaces.explained import X_EXPLAIN, prepare_explained_call, wants_explanation
from hookline.surfaces.models import is_models_path, prepare_models_call
from hookline.surfaces.request_body import load_any, load_json
from hookline.surfaces.settings import Deliver, FrontSettings, Serving
from hookline.surfaces.spool import SpoolRoom
from hookline.surfaces.stored_objects import READ_ONLY

X_TIMEOUT: Final = istr(TIMEOUT_HEADER)


class OpenAIDoor:
    """Serves every path below `/v1/`."""

    def __init__(self, settings: FrontSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self.room = SpoolRoom(settings.max_spool_bytes)

    async def serve(self, exchange: Exchange, target: RequestTarget, serving: Serving) -> None:
        """Run the call. Errors of the call are replies; raises ApiError for what can't become one, and ClientGone."""
        method = exchange.method
        endpoint, path = endpoint_of(method, target.path)
        if hdrs.ORIGIN in exchange.headers:
            _refuse_foreign_page(exchange, serving)
        call = Call(
            id=exchange.request_id,
            method=method,
            path=path,
            query=target.query,
            endpoint=endpoint,
            headers=exchange.headers,
            started_at=self._clock.monotonic(),
            started_time=self._clock.time(),
        )
        call.remote = exchange.connection.remote
        if (said := exchange.headers.get(X_TIMEOUT)) is not None:
            call.deadline = call.started_at + read_timeout_s(said, most_s=serving.max_timeout_s)
        deliver: Deliver = exchange.send
        if endpoint != "relay":
            call.load = partial(load_json, exchange, self._settings, serving, self.room)
        else:
            call.load = partial(load_any, exchange, self._settings, serving, self.room)
            if method in READ_ONLY and is_models_path(path):
                call.method = "GET"  # a list can't be completed without its body; the exchange keeps it from a HEAD
                deliver = prepare_models_call(call, serving.catalog, deliver)
        if (said := exchange.headers.get(X_EXPLAIN)) is not None and wants_explanation(said, serving):
            deliver = prepare_explained_call(call, exchange.send)
        exchange.call = call
        try:
            await serving.pipeline.run(call, deliver)
        finally:
            exchange.call = (
                None  # else call and exchange hold each other until the garbage collector comes: 15 µs a call
            )
            if exchange.kept_bytes:
                self.room.give_back(exchange.kept_bytes)
                exchange.kept_bytes = 0
            if call.upload is not None:
                await call.upload.aclose()


def _refuse_foreign_page(exchange: Exchange, serving: Serving) -> None:
    """A page from elsewhere can make a browser post plain text or a form without asking first (no preflight), to a gateway that needs no key.

    JSON it can't post unasked. Raises Forbidden."""
    origin = exchange.headers[hdrs.ORIGIN]
    if exchange.method in READ_ONLY or kind_of(exchange.headers.get(hdrs.CONTENT_TYPE, "")) == "json":
        return
    if origin.partition("://")[2] == exchange.headers.get(hdrs.HOST):
        return
    if serving.cors is None or not serving.cors.allows(origin):
        raise Forbidden(
            "this request comes from a web page of another origin; allow it in [server] cors, or send JSON",
            code="origin_not_allowed",
        )
