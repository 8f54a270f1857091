"""The schema's number: what this version writes, what it finds, and what it says where the two differ.

Lives here: `SCHEMA_VERSION`, the sentences, the child that migrates a SQLite file. Elsewhere: the steps (migrations/), who runs them (migration.py).
Idea: a serving process compares two integers; Alembic and SQLAlchemy are imported by another process, and only where there is something to do."""

from __future__ import annotations

import subprocess
import sys

from hookline.errors import StartupError

SCHEMA_VERSION = 6
"""The last step in migrations/, as an integer. SQLite keeps it as `PRAGMA user_version` as well."""
REVISION = f"{SCHEMA_VERSION:04d}"
"""The same as Alembic's revision."""


class NotMigrated(StartupError):
    """A database with no tables or those of an older Hookline, which only a person may change."""

    def __init__(self, where: str, version: int) -> None:
        state = f"has schema {version}, this Hookline needs {SCHEMA_VERSION}" if version else "has no tables yet"
        super().__init__([f"{where} {state}"])


def refuse_newer(where: str, version: int) -> None:
    """Raises StartupError when a newer Hookline has written the database."""
    if version > SCHEMA_VERSION:
        raise StartupError(
            [
                f"[state] records: {where} was written by a newer Hookline (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); install that version again or name another database"
            ]
        )


def migrate_in_child(url: str) -> None:
    """Bring a database to this schema, in a process that takes the memory of SQLAlchemy and Alembic with it. Raises StartupError."""
    done = subprocess.run(
        [sys.executable, "-m", "hookline.stores.migration", url], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise StartupError([said[-1].removeprefix("hookline: ")])
