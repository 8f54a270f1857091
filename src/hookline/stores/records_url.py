"""`[state] records` as its parts: what the driver is given, and what is ours.

Lives here: taking our options out of the URL. Elsewhere: relative paths (assembly.py), drivers (sqlite.py, postgres.py, migration.py).
Idea: one string carries all of it, so a store is made of a URL and nothing else.

    postgresql://user@host/db?spool=/var/spool/hookline&fsync_ms=100
    sqlite:////var/lib/hookline/hookline.db?fsync_ms=0"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from hookline.errors import StartupError
from hookline.stores.ledger_journal import FSYNC_MS


class RecordsUrl(NamedTuple):
    """`plain` is the URL without our options."""

    plain: str
    spool: str | None
    fsync_ms: int


def split_url(url: str) -> RecordsUrl:
    """Raises StartupError for an option that is no number."""
    plain, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    spool = options.pop("spool", None)
    fsync_ms = options.pop("fsync_ms", str(FSYNC_MS))
    if not fsync_ms.isascii() or not fsync_ms.isdigit():
        raise StartupError([f"[state] records: fsync_ms={fsync_ms} must be a whole number of milliseconds"])
    return RecordsUrl(f"{plain}?{urlencode(options)}" if options else plain, spool, int(fsync_ms))
