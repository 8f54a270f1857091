"""Upstream: one address that a provider dials, with its keys, timeouts and pool.

Lives here: from "these bytes, for this deployment" to the head of a reply; `to_upstream_error`, the one place where a transport's failure becomes ours.
Elsewhere: what the bytes are (openai.py, anthropic.py), what becomes of the reply (answer.py), sockets (transport).
Idea: everything that is the same for the next call is made once: a head per key, timeouts per tuple, cleaned header lines (headers.py). Caches are bounded and simply
emptied when full."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from itertools import count
from urllib.parse import urlsplit

from multidict import CIMultiDict, CIMultiDictProxy

from hookline.deployment import Deployment, Target
from hookline.errors import BadRequest, StartupError, UpstreamError
from hookline.providers.headers import ReplyHeaders, RequestHeaders
from hookline.providers.upstream_options import UpstreamOptions
from hookline.transport import HttpPool, Timeouts, TransportError, UpstreamResponse, serialize_headers

MAX_CACHED = 256
SECRET_CHARS_MIN = 8
"""A shorter "secret" is a word ("none", "local") that may stand in any text."""
_SECRET_NAME = re.compile(r"auth|key|token|secret|cookie")
_UNSET_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CONTENT_TYPE_JSON = b"content-type: application/json\r\n"

ADVICE: dict[str, str] = {
    "connect": "check that it runs, and base_url",
    "tls": "check base_url and [providers.*.tls]",
    "reset": "look at the upstream's log",
    "garbage": "check that base_url points to an API server",
    "connect_timeout": "check base_url and the network, or raise connect_s of its timeouts",
    "first_byte_timeout": "try again, or raise first_byte_s of its timeouts",
    "idle_timeout": "try again, or raise idle_s of its timeouts",
    "total_timeout": "ask for less, or raise total_s of its timeouts",
    "throughput_timeout": "try again, or lower min_bytes_per_s of its timeouts",
    "pool_timeout": "try again, or raise max_connections",
    "write_timeout": "try again, or raise write_timeout_s",
}
"""What to do about each kind of transport failure."""


def to_upstream_error(error: TransportError, deployment: Deployment) -> UpstreamError:
    """Say which deployment failed, how, and what to do. The transport's messages hold no header values and no bodies."""
    message = f"{deployment.id}: {error}; {ADVICE[error.kind]}"
    return UpstreamError(message, kind=error.kind, is_written=error.is_written)


class Upstream:
    """One origin. `key_header` turns a key into the header that carries it."""

    def __init__(
        self, name: str, options: UpstreamOptions, key_header: tuple[str, str], own: Mapping[str, str]
    ) -> None:
        """In: the provider's name; ("authorization", "Bearer {}"); headers of the dialect. The configured `headers` win over `own`.

        Raises StartupError for TLS files that can't be used."""
        parts = urlsplit(options.base_url)
        self.name = name
        self.path = parts.path
        self._options = options
        self._keys = options.keys
        self._turn = count()
        self._key_name, self._key_format = key_header
        configured = {key.lower(): value.get_secret_value() for key, value in options.headers.items()}
        # Of "Bearer KEY" a server may quote the key alone.
        own_secrets = (value.rpartition(" ")[2] for name, value in configured.items() if _SECRET_NAME.search(name))
        self._secrets = (*options.keys, *own_secrets)
        self._own = {"accept-encoding": "identity", **own, **configured}
        self.request_headers = RequestHeaders([*self._own, self._key_name])
        self.reply_headers = ReplyHeaders()
        self._heads: dict[str | None, bytes] = {}
        self._timeouts: dict[tuple[float | None, ...], Timeouts] = {}
        try:
            self._pool = HttpPool(
                parts.scheme,
                parts.hostname or "",
                parts.port,
                max_connections=options.max_connections,
                keepalive_s=options.keepalive_s,
                tls=options.tls.to_options() if parts.scheme == "https" else None,
            )
        except ValueError as error:
            raise StartupError([f"[providers.{name}] tls: {error}"]) from error

    async def request(
        self,
        target: Target,
        *,
        method: bytes,
        path: bytes,
        head: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        content_length: int | None = None,
    ) -> UpstreamResponse:
        """Send, and return when the reply's head is there. Raises UpstreamError, and BadRequest for a request that can't be put on the wire."""
        try:
            return await self._pool.request(
                method=method,
                target=path,
                head=head,
                body=body,
                timeouts=self.timeouts(target),
                content_length=content_length,
            )
        except TransportError as error:
            raise to_upstream_error(error, target.deployment) from error
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def head(
        self,
        deployment: Deployment,
        headers: CIMultiDictProxy[str] | CIMultiDict[str],
        *,
        has_json: bool = False,
    ) -> bytes:
        """The head for one attempt: the next key in turn, our own headers, and those of the client that go on.

        Raises UpstreamError(configuration) for a key whose variable is not set, BadRequest for a header that can't be sent."""
        key = deployment.api_key or self._find_key(deployment.key_number)
        head = self._heads.get(key)
        if head is None:
            head = self._make_head(key, deployment)
        try:
            lines = self.request_headers.lines(headers)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        if has_json and "content-type" not in headers:
            return head + lines + _CONTENT_TYPE_JSON
        return head + lines

    def timeouts(self, target: Target) -> Timeouts:
        """The target's, and what only the provider knows."""
        key = (
            target.connect_timeout_s,
            target.first_byte_timeout_s,
            target.idle_timeout_s,
            target.total_timeout_s,
            target.min_bytes_per_s,
        )
        timeouts = self._timeouts.get(key)
        if timeouts is None:
            options = self._options
            timeouts = Timeouts(
                connect_s=target.connect_timeout_s,
                first_byte_s=target.first_byte_timeout_s,
                idle_s=target.idle_timeout_s,
                total_s=target.total_timeout_s,
                min_bytes_per_s=target.min_bytes_per_s,
                write_s=options.write_timeout_s,
                pool_s=options.pool_timeout_s,
            )
            if len(self._timeouts) >= MAX_CACHED:
                self._timeouts.clear()
            self._timeouts[key] = timeouts
        return timeouts

    def hide_secrets(self, headers: CIMultiDict[str], body: bytes, deployment: Deployment) -> bytes:
        """An error's body without our keys, which some servers quote; headers that hold one are dropped."""
        for secret in sorted(
            {*self._secrets, deployment.api_key or ""}, key=len, reverse=True
        ):  # one may begin another
            if len(secret) < SECRET_CHARS_MIN:
                continue
            body = body.replace(secret.encode(), b"***")
            for name in [name for name, value in headers.items() if secret in value]:
                headers.popall(name, None)
        return body

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    def _find_key(self, number: int | None) -> str | None:
        """The deployment's own of our keys, else the next in turn."""
        keys = self._keys
        if not keys:
            return None
        return keys[0] if len(keys) == 1 else keys[(next(self._turn) if number is None else number) % len(keys)]

    def _make_head(self, key: str | None, deployment: Deployment) -> bytes:
        headers = dict(self._own)
        if key is not None:
            unset = _UNSET_VARIABLE.search(key)
            if unset is not None:
                raise UpstreamError(
                    f"{deployment.id}: environment variable {unset.group(1)}, which its api_key needs, is not set; "
                    "set it and start again",
                    kind="configuration",
                    is_written=False,
                )
            headers.setdefault(self._key_name, self._key_format.format(key))
        try:
            head = serialize_headers((name.encode(), value.encode()) for name, value in headers.items())
        except ValueError as error:
            raise UpstreamError(
                f"{deployment.id}: its api_key can't be sent: {error}",
                kind="configuration",
                is_written=False,
            ) from error
        if len(self._heads) >= MAX_CACHED:
            self._heads.clear()
        self._heads[key] = head
        return head
