"""The OpenAI door: a request below `/v1` becomes a call, the call's reply goes back.

Lives here: which endpoint a path is, when and how the body is read. Elsewhere: what JSON bodies must be (json_body.py), uploads
(multipart.py, spool.py), `/v1/models` (models.py), everything that happens to the call (pipeline.py).
Idea: the door only builds the `Call`; the body is read by `call.load`, which the pipeline calls after it knows who asks."""

from __future__ import annotations

from functools import partial

from hookline.call import ENDPOINTS, Call, Endpoint
from hookline.host import Clock
from hookline.surfaces.exchange import Exchange
from hookline.surfaces.json_body import load_json_call
from hookline.surfaces.paths import RequestTarget, decode
from hookline.surfaces.settings import FrontSettings, Serving


class OpenAIDoor:
    """Serves every path below `/v1/`."""

    def __init__(self, settings: FrontSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def serve(self, exchange: Exchange, target: RequestTarget, serving: Serving) -> None:
        """Run the call. Errors of the call are replies; raises only ClientGone."""
        method = exchange.method
        endpoint: Endpoint = "relay"
        if method == "POST":
            endpoint = ENDPOINTS.get(target.path) or ENDPOINTS.get(decode(target.path), "relay")
        call = Call(
            id=exchange.request_id,
            method=method,
            path=target.path,
            query=target.query,
            endpoint=endpoint,
            headers=exchange.headers,
            started_at=self._clock.monotonic(),
            started_time=self._clock.time(),
        )
        call.remote = exchange.connection.remote
        call.load = partial(load_json_call, exchange, self._settings.max_body_bytes, serving.default_completion_model)
        exchange.call = call
        try:
            await serving.pipeline.run(call, exchange.send)
        finally:
            exchange.call = (
                None  # else call and exchange hold each other until the garbage collector comes: 15 µs a call
            )
