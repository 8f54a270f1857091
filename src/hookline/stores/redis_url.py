"""`[state] shared = "redis://..."` taken apart.

Lives here: where the server is, who we are there, our own options. Elsewhere: dialling (redis_connection.py).
Idea: one string carries all of it; an option nobody knows is refused, since a typing error in a timeout would show at the first outage only."""

from __future__ import annotations

import difflib
import ssl
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from hookline.errors import StartupError

PORT = 6379


class RedisOptions(NamedTuple):
    """What the query of the URL may set: `redis://host:6379/0?command_timeout_s=0.5`."""

    connect_timeout_s: float = 1.0
    command_timeout_s: float = 0.5
    prefix: str = "hookline"
    l1_ttl_s: float = 1.0
    leases: int = 1
    ssl_ca_certs: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""


class RedisUrl(NamedTuple):
    """Where, and as whom."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    options: RedisOptions

    @property
    def greeting(self) -> list[tuple[Any, ...]]:
        """The first commands of a connection; the last one shows that the server decides."""
        commands: list[tuple[Any, ...]] = []
        if self.password is not None:
            user = () if self.username is None else (self.username,)
            commands.append(("AUTH", *user, self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        return [*commands, ("PING",)]


def read_url(url: str) -> RedisUrl:
    """Raises StartupError, which never quotes the password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port or PORT
        database = int(parts.path.strip("/") or 0)
    except ValueError:
        raise StartupError(["[state] shared: must be redis://[user:password@]host[:port][/number]"]) from None
    options = _read_options(parts.query)
    tls = None
    if parts.scheme == "rediss":
        try:
            tls = ssl.create_default_context(cafile=options.ssl_ca_certs or None)
            if options.ssl_certfile:
                tls.load_cert_chain(options.ssl_certfile, options.ssl_keyfile or None)
        except OSError as error:
            raise StartupError([f"[state] shared: the certificates can't be read: {error}"]) from error
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password is not None else None
    return RedisUrl(host, port, database, username, password, tls, options)


def _read_options(query: str) -> RedisOptions:
    ours: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        default = RedisOptions._field_defaults.get(name)
        if default is None:
            near = difflib.get_close_matches(name, RedisOptions._fields, 1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(RedisOptions._fields)}"
            raise StartupError([f'[state] shared: no option "{name}"{hint}'])
        try:
            ours[name] = type(default)(value)
        except ValueError:
            raise StartupError([f'[state] shared: {name}="{value}" is not a number']) from None
    options = RedisOptions(**ours)
    if min(options.connect_timeout_s, options.command_timeout_s) <= 0:
        raise StartupError(["[state] shared: timeouts must be more than 0"])
    if options.leases not in (0, 1):
        raise StartupError(["[state] shared: leases is 1, or 0 for none"])
    return options
