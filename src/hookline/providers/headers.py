"""Headers: which of the client's go upstream, and which of the upstream's come back.

Lives here: the two lists, and the caches that make obeying them cheap. Elsewhere: the lines a provider adds itself (upstream.py), writing and reading heads (transport).
Idea: whether a header passes depends on its name alone, and clients send the same lines again and again; so a name is judged once and a line is serialised once.

Rules
- Hop-by-hop headers end here in both directions, and so does what `Connection` names.
- Nothing that says who the client is to *us* (keys, cookies, organisation) is told to an upstream.
- No header says that the request is another one than the gateway checked (a method or path to take in place of its own).
- Framing, `Host`, `Expect` and codings belong to each connection: the body goes on plain, and the upstream is asked for `identity`."""

from __future__ import annotations

from collections.abc import Iterable

from multidict import CIMultiDict, CIMultiDictProxy, istr

from hookline.transport import serialize_headers

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip

NEVER_SENT_UPSTREAM = HOP_BY_HOP | {
    "host", "content-length", "expect", "accept-encoding", "content-encoding",
    "authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie", "openai-organization", "openai-project",
    "idempotency-key",
    "x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url",
}  # fmt: skip
"""Beside these: everything that begins with `x-hookline-` or `proxy-`."""

NEVER_SENT_BACK = HOP_BY_HOP | {
    "set-cookie", "set-cookie2", "content-length",
    # What the upstream says about its own address or its own clock would be said about ours.
    "date", "alt-svc", "strict-transport-security",
}  # fmt: skip
"""Beside these: everything that begins with `x-hookline-`, `proxy-` or `access-control-`."""

RENAMED_BACK = dict.fromkeys(("x-request-id", "request-id"), "x-hookline-upstream-request-id")

_PREFIXES_UPSTREAM = ("x-hookline-", "proxy-")
_PREFIXES_BACK = ("x-hookline-", "proxy-", "access-control-")
_PLAIN_CONNECTION = frozenset({"keep-alive", "Keep-Alive", "close", ""})
MAX_LINES = 2048
MAX_NAMES = 512
MAX_CACHED_LINE_CHARS = 512


class RequestHeaders:
    """Serialises the client's headers that go on. `replaced` are names (lower case) the provider writes itself."""

    __slots__ = ("_is_dropped", "_lines", "_replaced")

    def __init__(self, replaced: Iterable[str] = ()) -> None:
        self._replaced = frozenset(replaced)
        self._is_dropped: dict[str, bool] = {}
        self._lines: dict[tuple[str, str], bytes] = {}

    def lines(self, headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> bytes:
        """The lines of a request head. Raises ValueError for what cannot stand on a line."""
        cached, is_dropped = self._lines, self._is_dropped
        lines: list[bytes] = []
        for item in headers.items():
            line = cached.get(item)
            if line is None:
                name = item[0]
                dropped = is_dropped.get(name)
                if dropped is None:
                    dropped = self._judge(name)
                if dropped:
                    if len(name) == 10 and item[1] not in _PLAIN_CONNECTION and name.lower() == "connection":
                        return self._without(headers)
                    continue
                line = self._serialize(item)
            lines.append(line)
        return b"".join(lines)

    def _judge(self, name: str) -> bool:
        lower = name.lower()
        dropped = lower in NEVER_SENT_UPSTREAM or lower in self._replaced or lower.startswith(_PREFIXES_UPSTREAM)
        if len(self._is_dropped) >= MAX_NAMES:
            self._is_dropped.clear()
        self._is_dropped[str(name)] = dropped
        return dropped

    def _serialize(self, item: tuple[str, str]) -> bytes:
        name, value = item
        line = serialize_headers([(_encode(name), _encode(value))])
        if len(value) <= MAX_CACHED_LINE_CHARS:
            if len(self._lines) >= MAX_LINES:  # trace ids and the like fill it; what repeats is back at once
                self._lines.clear()
            self._lines[item] = line
        return line

    def _without(self, headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> bytes:
        named = {name.strip().lower() for value in headers.getall("connection") for name in value.split(",")}
        return b"".join(
            self._serialize(item)
            for item in headers.items()
            if item[0].lower() not in named and not self._judge(item[0])
        )


class ReplyHeaders:
    """Cleans the upstream's headers for the way back."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[bytes, istr | None] = {}

    def read(self, raw: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        """The headers that go on, from names in lower case and values as they came."""
        names = self._names
        kept: list[tuple[str, str]] = []
        connection = b""
        for raw_name, value in raw:
            try:
                name = names[raw_name]
            except KeyError:
                name = self._judge(raw_name)
            if name is not None:
                kept.append((name, value.decode("utf-8", "surrogateescape")))
            elif raw_name == b"connection":
                connection += b"," + value
        headers = CIMultiDict(kept)
        if connection and connection[1:] not in (b"keep-alive", b"close", b"Keep-Alive"):
            for token in connection.decode("latin-1").split(","):
                headers.popall(token.strip(), None)
        return headers

    def _judge(self, raw_name: bytes) -> istr | None:
        lower = raw_name.decode("latin-1").lower()
        dropped = lower in NEVER_SENT_BACK or lower.startswith(_PREFIXES_BACK)
        name = None if dropped else istr(RENAMED_BACK.get(lower, lower))
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names[raw_name] = name
        return name


def _encode(text: str) -> bytes:
    """The bytes the client sent: the server decodes them as UTF-8, and keeps what is none as surrogates."""
    return text.encode("utf-8", "surrogateescape")
