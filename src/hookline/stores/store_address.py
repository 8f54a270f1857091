"""The address of a store, as far as it can be judged without opening anything.

Lives here: `check_address`. Elsewhere: what is read of each (redis_url.py, records_url.py), who opens (assembly.py).
Idea: `hookline check` opens no store, and a typing error in an address must not wait for the first start."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from hookline.errors import StartupError


def check_address(scheme: str, url: str) -> None:
    """`url` with absolute paths. Raises StartupError, which never quotes a password; schemes that plugins bring are theirs to check."""
    if scheme in ("redis", "rediss"):
        from hookline.stores.redis_url import read_url

        read_url(url)
    elif scheme == "sqlite":
        from hookline.stores.records_url import split_url

        _check_file(split_url(url).plain.partition("?")[0])
    elif scheme == "postgresql":
        from hookline.stores.records_url import split_url

        _check_server(split_url(url).plain)


def _check_file(plain: str) -> None:
    path = plain.removeprefix("sqlite:///")
    if path in ("", plain):
        raise StartupError(["[state] records: must be sqlite:///file.db, or sqlite:////folder/file.db"])
    if path != ":memory:" and not Path(path).parent.is_dir():
        raise StartupError([f"[state] records: there is no folder {Path(path).parent}"])


def _check_server(plain: str) -> None:
    try:
        parts = urlsplit(plain)
        _ = parts.port  # raises for what is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme != "postgresql" or not plain.startswith("postgresql://"):
        raise StartupError(["[state] records: must be postgresql://[user[:password]@]host[:port]/database"])
