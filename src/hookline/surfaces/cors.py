"""Cross-origin access for browsers: off unless `[server.cors]` names origins.

Lives here: which origins may read replies, the preflight answer. Elsewhere: who answers OPTIONS otherwise (front_door.py).
Idea: nothing is added unless the origin is allowed, so the browser's own default (no) holds everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDict

from hookline.reply import Reply

METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED: Final = ", ".join((
    "x-request-id", "x-should-retry", "retry-after", "age", "x-hookline-deployment", "x-hookline-attempts", "x-hookline-cost-usd",
    "x-hookline-output-capped", "x-hookline-upstream-request-id", "x-hookline-complexity", "x-hookline-cache", "x-hookline-cache-key",
    "x-hookline-replayed", "x-hookline-rescue", "x-hookline-queue-position", "x-hookline-queue-wait-ms", "x-hookline-last-id",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
))  # fmt: skip
"""What docs/reference/headers.md says of replies."""


@dataclass(frozen=True, slots=True)
class Cors:
    """`allow_origins`: exact origins ("https://app.example.org"), or "*" for every one. `allow_headers`: "*" echoes what is asked for."""

    allow_origins: tuple[str, ...]
    allow_headers: tuple[str, ...] = ("*",)
    expose_headers: tuple[str, ...] = ()
    max_age_s: int = 600

    def allows(self, origin: str) -> bool:
        return "*" in self.allow_origins or origin in self.allow_origins

    def reply_lines(self, request_headers: Mapping[str, str]) -> str:
        """Header lines that belong on every reply to this request."""
        lines = "" if "*" in self.allow_origins else "vary: origin\r\n"
        origin = request_headers.get(hdrs.ORIGIN)
        if origin is not None and self.allows(origin):
            allowed = "*" if "*" in self.allow_origins else origin
            exposed = ", ".join((EXPOSED, *self.expose_headers))
            lines += f"access-control-allow-origin: {allowed}\r\naccess-control-expose-headers: {exposed}\r\n"
        return lines

    def preflight(self, request_headers: Mapping[str, str]) -> Reply:
        """The answer to a preflight; `reply_lines` adds the origin."""
        headers = CIMultiDict({"allow": METHODS})
        if self.allows(request_headers.get(hdrs.ORIGIN, "")):
            asked = request_headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            allowed = asked if "*" in self.allow_headers else ", ".join(self.allow_headers)
            headers["access-control-allow-methods"] = METHODS
            headers["access-control-max-age"] = str(self.max_age_s)
            if allowed:
                headers["access-control-allow-headers"] = allowed
        return Reply(204, headers, source="local")
