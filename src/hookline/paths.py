"""Request targets: what a path means, before anybody matches it.

Lives here: absolute form, dot segments, empty segments, which endpoint a path of the API is. Elsewhere: which path is whose (surfaces/front_door.py).
Idea: resolved once, at the door, for matching and for the upstream alike, so that no two parties read a path differently; other
percent-encoding and the query stay byte for byte."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from hookline.call import ENDPOINTS, Endpoint
from hookline.errors import BadRequest


class RequestTarget(NamedTuple):
    """A resolved path that begins with "/" (or "*"), and the query as it came, without "?"."""

    path: str
    query: str


_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*)+/?")
"""Paths with nothing to resolve: no percent sign, no empty segment, no segment that begins with a dot."""
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_ENCODED_DOT = re.compile(r"%2e", re.IGNORECASE)
_HIDDEN_SEPARATOR = re.compile(r"%2f|%5c", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def resolve_target(raw: str) -> RequestTarget:
    """Split and resolve a request target. Raises BadRequest for what no client sends in good faith."""
    path, _, query = raw.partition("?")
    if _PLAIN.fullmatch(path) and "#" not in query:
        return RequestTarget(path, query)
    if raw == "*":
        return RequestTarget("*", "")
    if "#" in raw or "\\" in path:
        raise BadRequest("the request target holds a character that must be percent-encoded", code="bad_path")
    if not path.startswith("/"):
        path = _ABSOLUTE.sub("", path, count=1) or "/"
    if not path.startswith("/"):
        raise BadRequest("the request target is neither a path nor a URL", code="bad_path")
    if _BROKEN_ESCAPE.search(path):
        raise BadRequest("the path holds a % that is not followed by two hexadecimal digits", code="bad_path")
    return RequestTarget(_resolve_segments(path), query)


def endpoint_of(method: str, path: str) -> tuple[Endpoint, str]:
    """Which endpoint a resolved path is, and the path as the upstream gets it. "relay": one that this gateway does not read."""
    if method != "POST":
        return "relay", path
    endpoint = ENDPOINTS.get(path, "relay")
    if endpoint == "relay" and (endpoint := ENDPOINTS.get(fold(path), "relay")) != "relay":
        path = path.rstrip("/")  # a last slash means nothing here, and to some upstreams another path
    return endpoint, path


def _resolve_segments(path: str) -> str:
    segments: list[str] = []
    last = len(parts := path.split("/")[1:]) - 1
    for index, part in enumerate(parts):
        plain = _ENCODED_DOT.sub(".", part) if "%" in part else part
        if plain == "..":
            if segments:
                segments.pop()
        elif plain not in ("", "."):
            _refuse_hidden_dots(plain)
            segments.append(part)
            continue
        if index == last:  # "/a/" and "/a/." end with a slash, and so does what they resolve to
            return "/" + "".join(segment + "/" for segment in segments)
    return "/" + "/".join(segments)


def _refuse_hidden_dots(part: str) -> None:
    """`..%2f..` is one segment here, and perhaps three to a server that decodes before it resolves; `..;x` is `..` to one that takes parameters
    off first: nobody needs them."""
    if any(piece.partition(";")[0] in (".", "..") for piece in _HIDDEN_SEPARATOR.split(part)):
        raise BadRequest("the path holds dot segments behind an encoded slash or a semicolon", code="bad_path")


def decode(path: str) -> str:
    """The path with every percent-escape decoded: for matching only, never for sending."""
    return unquote(path) if "%" in path else path


def fold(path: str) -> str:
    """The path as the most lenient server would match it: decoded, in lower case, without parameters, empty segments and a slash, space or dot
    at an end. What a route may do is decided by this form, so that no spelling of a path is another route than the path."""
    plain = decode(path).lower().replace("\\", "/")
    segments = [part.partition(";")[0].strip().rstrip(". ") for part in plain.split("/")]
    return "/" + "/".join(filter(None, segments))
