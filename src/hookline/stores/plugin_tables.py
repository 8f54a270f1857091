"""A plugin's own tables: what it declares, and what it can do with them.

Lives here: `Table`, `TableStore`, rows as they come back. Elsewhere: the SQL (table_sql.py), who runs it (sqlite.py, postgres.py), making and changing tables
(table_migration.py).
Idea: a table is a pydantic model and which of its fields are found by. Rows carry a revision, and a change names the one it was made from: that is all the
locking there is, and two processes can't both win.

    class Note(BaseModel):
        __table__ = Table("notes", key="id", indexes=(("owner", "made_at"),))
        id: str
        owner: str
        made_at: float
        text: str = ""                      # added later: a new field needs a default

    class Plugin:
        tables = (Note,)                    # `hookline migrate` makes and widens them
        def __init__(self, options, host):
            self._notes = host.records.table(Note)"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from hookline.errors import StartupError

if TYPE_CHECKING:
    from pydantic import BaseModel

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
PAGE_MAX = 1_000


class Table(NamedTuple):
    """How a model is kept: `key` is the field that is unique, each of `indexes` names fields by which rows are found and ordered."""

    name: str
    key: str = "id"
    indexes: Sequence[Sequence[str]] = ()


T = TypeVar("T", bound="BaseModel")


class Row(NamedTuple, Generic[T]):
    """What is kept, and which change of it this is: 1 when it was inserted."""

    value: T
    revision: int


class Page(NamedTuple, Generic[T]):
    """Rows in order, and where the next page begins; None at the end."""

    rows: Sequence[Row[T]]
    next: str | None


class TableStore(Protocol[T]):
    """Rows of one table. Every method raises `Unavailable` when the database can't be asked."""

    async def get(self, key: str) -> Row[T] | None:
        """The row with this key."""

    async def insert(self, value: T) -> bool:
        """Keep a new row; False if there is one with its key."""

    async def update(self, value: T, *, revision: int) -> bool:
        """Replace the row with this key if it is still at `revision`, and count that up; False if it is not, or gone."""

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        """Remove a row (if it is still at `revision`, where one is given); False if there was none."""

    async def find(
        self,
        *,
        equal: Mapping[str, Any] = {},
        order: str | None = None,
        at_least: Any = None,
        below: Any = None,
        descending: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[T]:
        """Rows whose fields equal these, in the order of the field `order` (None: of the key), of which only those with `at_least <= order < below`.

        The fields of `equal`, in any order, and then `order` must begin one of the table's indexes. `after` is a former page's `next`.
        Raises ValueError for what no index holds, and for an `after` that no page gave."""


def check_table(model: type[Any]) -> Table:
    """The model's table. Raises StartupError where it can't be one."""
    table = getattr(model, "__table__", None)
    fields = getattr(model, "model_fields", {})
    where = f"table of {model.__qualname__}"
    if not isinstance(table, Table):
        raise StartupError([f'{where}: give it `__table__ = Table("name", ...)`'])
    problems = []
    named = [table.name, *fields]
    problems += [
        f'{where}: "{name}" must be like "snake_case", at most 40' for name in named if not NAME.fullmatch(name)
    ]
    if "revision" in fields:
        problems.append(f'{where}: the field "revision" is kept by the store; choose another name')
    for name in sorted({table.key, *(field for index in table.indexes for field in index)} - set(fields)):
        problems.append(f'{where}: there is no field "{name}"')
    if table.key in fields and fields[table.key].annotation is not str:
        problems.append(f'{where}: its key "{table.key}" must be a str')
    if problems:
        raise StartupError(problems)
    return table
