"""The front door: which request goes to whom.

Lives here: `/v1/*` to the OpenAI door, all else to Hookline's own routes; TRACE, CONNECT and OPTIONS. Elsewhere: what either does
(openai.py, routes.py), the bytes (http_server.py, exchange.py).
Idea: nothing outside `/v1` can become a call, and nothing inside it is answered without one (but OPTIONS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import hdrs
from multidict import CIMultiDict

from hookline.errors import MethodNotAllowed
from hookline.host import Clock
from hookline.paths import RequestTarget, decode, resolve_target
from hookline.reply import Reply
from hookline.surfaces.cors import METHODS
from hookline.surfaces.exchange import Exchange
from hookline.surfaces.openai import OpenAIDoor
from hookline.surfaces.routes import serve_route

if TYPE_CHECKING:
    from hookline.surfaces.http_front import HttpFront

REFUSED: Final = frozenset({"TRACE", "CONNECT"})


class FrontDoor:
    """Sends each request through the right door."""

    def __init__(self, front: HttpFront, clock: Clock) -> None:
        self._front = front
        self._openai = OpenAIDoor(front.settings, clock)

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request. Raises ApiError (the connection turns it into a reply) and ClientGone."""
        method = exchange.method
        if method in REFUSED:
            raise MethodNotAllowed(f"{method} is not served here", headers={"allow": METHODS})
        serving = self._front.serving
        target = resolve_target(exchange.target)
        if target.path.startswith("/v1/"):
            if method == "OPTIONS":
                await exchange.send(_answer_options(exchange, METHODS))
            else:
                await self._openai.serve(exchange, target, serving)
            return
        path = decode(target.path)
        if method == "OPTIONS":
            allowed = METHODS if path == "*" else serving.routes.get_allowed(path)
            await exchange.send(_answer_options(exchange, allowed))
            return
        await serve_route(exchange, RequestTarget(path, target.query), serving)


def _answer_options(exchange: Exchange, allowed: str) -> Reply:
    cors = exchange.connection.front.cors
    if cors is not None and hdrs.ACCESS_CONTROL_REQUEST_METHOD in exchange.headers:
        return cors.preflight(exchange.headers)
    return Reply(204, CIMultiDict({"allow": allowed}), source="local")
