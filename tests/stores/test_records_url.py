"""`[state] records` and `fsync_ms`, as they reach a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookline.assembly import records_url
from hookline.config_loading import load
from hookline.errors import StartupError
from hookline.stores.records_url import split_url


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", ("sqlite:///{here}/hookline.db", None, 100)),
        ("fsync_ms = 7", ("sqlite:///{here}/hookline.db", None, 7)),
        ('records = "sqlite:////srv/a.db?fsync_ms=3"\nfsync_ms = 7', ("sqlite:////srv/a.db", None, 3)),
        ('records = "sqlite:///:memory:"', ("sqlite:///:memory:", None, 100)),
        ('records = "postgresql://db/h?sslmode=require"', ("postgresql://db/h?sslmode=require", "{here}/hookline-spool", 100)),
        ('records = "postgresql://db/h?spool=/var/s"\nfsync_ms = 0', ("postgresql://db/h", "/var/s", 0)),
    ],
)  # fmt: skip
def test_options_reach_the_store_and_not_the_driver(tmp_path: Path, state: str, expected: tuple[str, str, int]) -> None:
    (tmp_path / "proxy.toml").write_text(f'[state]\n{state}\n[providers.demo]\nkind = "demo"\n')

    found = split_url(records_url(load(tmp_path / "proxy.toml", {})))

    plain, spool, fsync_ms = expected
    assert found == (plain.format(here=tmp_path), spool and spool.format(here=tmp_path), fsync_ms)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(StartupError, match="fsync_ms=soon must be a whole number of milliseconds"):
        split_url("sqlite:///a.db?fsync_ms=soon")
