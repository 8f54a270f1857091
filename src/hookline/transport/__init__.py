"""Bytes to and from an upstream: a pool of HTTP/1.1 connections, replies as they come, SSE framing.

Lives here: everything between "send these bytes there" and "these bytes came back". Elsewhere: dialects, retries, plugins; this
package imports nothing of hookline and knows no LLM.
Idea: read `pool.py` for the life of a request, `connection.py` for the life of a socket."""

from hookline.transport.contract import Timeouts, Transport, UpstreamResponse
from hookline.transport.decode import DECODABLE, decoded
from hookline.transport.dial import Resolver
from hookline.transport.errors import BodyTooLarge, TransportError
from hookline.transport.http1 import serialize_headers
from hookline.transport.pool import HttpPool, PoolStats
from hookline.transport.sse import SseEvent, SseSplitter, parse_event, serialize_event
from hookline.transport.tls import TlsOptions

__all__ = [
    "DECODABLE",
    "BodyTooLarge",
    "HttpPool",
    "PoolStats",
    "Resolver",
    "SseEvent",
    "SseSplitter",
    "Timeouts",
    "TlsOptions",
    "Transport",
    "TransportError",
    "UpstreamResponse",
    "decoded",
    "parse_event",
    "serialize_event",
    "serialize_headers",
]
