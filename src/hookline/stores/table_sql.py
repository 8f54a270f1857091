"""A plugin's table as SQL, the same text for SQLite and PostgreSQL but for the marks of its parameters and two types.

Lives here: columns of a model, statements, rows there and back, pages. Elsewhere: the protocol (plugin_tables.py), running it (sqlite.py, postgres.py).
Idea: each field is a column of the nearest type, so that others can read the table too; what is no text, number or truth is JSON."""

from __future__ import annotations

import base64
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson
from pydantic_core import to_jsonable_python as to_jsonable

from hookline.errors import StartupError
from hookline.stores.plugin_tables import PAGE_MAX, Page, Row, check_table

if TYPE_CHECKING:
    from pydantic import BaseModel

TYPES = {
    str: ("VARCHAR", "VARCHAR"),
    int: ("BIGINT", "BIGINT"),
    float: ("DOUBLE", "DOUBLE PRECISION"),
    bool: ("BOOLEAN", "BOOLEAN"),
}
JSON_TYPE = ("VARCHAR", "VARCHAR")

T = TypeVar("T", bound="BaseModel")
Run = Callable[[str, Sequence[Any]], Awaitable[Sequence[Sequence[Any]]]]


class Column(typing.NamedTuple):
    """A field as it is kept."""

    name: str
    plain: Any
    """str, int, float or bool; None: JSON."""
    default: str | None
    """As SQL; None: it has none."""

    def type_in(self, dialect: int) -> str:
        return TYPES.get(self.plain, JSON_TYPE)[dialect]

    def write(self, value: Any, dumped: Any) -> Any:
        if value is None:
            return None
        if self.plain is None:
            return orjson.dumps(dumped).decode()
        return dumped if self.plain is str else self.plain(value)

    def read(self, value: Any) -> Any:
        if value is None or self.plain is str:
            return value
        return orjson.loads(value) if self.plain is None else self.plain(value)


def columns_of(model: type[BaseModel]) -> list[Column]:
    columns = []
    for name, field in model.model_fields.items():
        plain = _plain(field.annotation)
        default = None
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            dumped = getattr(value, "value", value) if plain is not None else to_jsonable(value)
            default = _literal(Column(name, plain, None).write(value, dumped))
        columns.append(Column(name, plain, default))
    return columns


def table_name(name: str) -> str:
    """Its name in the database, where it meets no table of Hookline's own."""
    return f"plugin_{name}"


def creations(model: type[BaseModel], *, dialect: int, existing: Sequence[str] | None) -> list[str]:
    """What makes the table, or adds what `existing` columns lack. `dialect`: 0 SQLite, 1 PostgreSQL. Raises ValueError for a new field without a default."""
    table = check_table(model)
    name = table_name(table.name)
    statements = []
    if existing is None:
        lines = [
            f'"{c.name}" {c.type_in(dialect)}{" NOT NULL" if c.name == table.key else ""}' for c in columns_of(model)
        ]
        lines += ["revision BIGINT NOT NULL", f'PRIMARY KEY ("{table.key}")']
        statements.append(f"CREATE TABLE {name} ({', '.join(lines)})")
    else:
        for column in columns_of(model):
            if column.name in existing:
                continue
            if column.default is None:
                raise ValueError(
                    f'table {table.name}: the new field "{column.name}" needs a default, for the rows there are'
                )
            added = f'"{column.name}" {column.type_in(dialect)} DEFAULT {column.default}'
            statements.append(f"ALTER TABLE {name} ADD COLUMN {added}")
    for index in table.indexes:
        columns = ", ".join(f'"{field}"' for field in (*index, table.key))
        statements.append(f"CREATE INDEX IF NOT EXISTS {name}_{'_'.join(index)} ON {name} ({columns})")
    return statements


class SqlTable(Generic[T]):
    """A `TableStore`. `run` executes one statement and answers its rows; `mark` is that of its parameters, `?` or `$`."""

    def __init__(self, model: type[T], run: Run, mark: str) -> None:
        self._model = model
        self._run = run
        self._mark = mark
        self._table = table = check_table(model)
        self._columns = columns_of(model)
        self._name = table_name(table.name)
        self._selected = ", ".join([*(f'"{column.name}"' for column in self._columns), "revision"])
        marks = [f"{mark}{i + 1}" for i in range(len(self._columns))]
        self._insert = f"INSERT INTO {self._name} ({self._selected}) VALUES ({', '.join(marks)}, 1) ON CONFLICT DO NOTHING RETURNING revision"
        changes = ", ".join(f'"{c.name}" = {m}' for c, m in zip(self._columns, marks, strict=True))
        key_mark = marks[[c.name for c in self._columns].index(table.key)]
        self._update = (
            f"UPDATE {self._name} SET {changes}, revision = revision + 1 "
            f'WHERE "{table.key}" = {key_mark} AND revision = {mark}{len(marks) + 1} RETURNING revision'
        )

    async def get(self, key: str) -> Row[T] | None:
        rows = await self._run(
            f'SELECT {self._selected} FROM {self._name} WHERE "{self._table.key}" = {self._mark}1', [key]
        )
        return self._read(rows[0]) if rows else None

    async def insert(self, value: T) -> bool:
        return bool(await self._run(self._insert, self._written(value)))

    async def update(self, value: T, *, revision: int) -> bool:
        return bool(await self._run(self._update, [*self._written(value), revision]))

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        text = f'DELETE FROM {self._name} WHERE "{self._table.key}" = {self._mark}1'
        if revision is None:
            return bool(await self._run(f"{text} RETURNING revision", [key]))
        return bool(await self._run(f"{text} AND revision = {self._mark}2 RETURNING revision", [key, revision]))

    async def find(
        self,
        *,
        equal: Mapping[str, Any] = types.MappingProxyType({}),
        order: str | None = None,
        at_least: Any = None,
        below: Any = None,
        descending: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[T]:
        key = self._table.key
        order = order or key
        self._check_index(equal, order)
        if not 1 <= limit <= PAGE_MAX:
            raise ValueError(f"limit={limit}: must be from 1 to {PAGE_MAX}")
        arguments: list[Any] = []

        def put(value: Any) -> str:
            arguments.append(value)
            return f"{self._mark}{len(arguments)}"

        conditions = [f'"{name}" = {put(getattr(value, "value", value))}' for name, value in equal.items()]
        if at_least is not None:
            conditions.append(f'"{order}" >= {put(at_least)}')
        if below is not None:
            conditions.append(f'"{order}" < {put(below)}')
        if after is not None:
            place, last_key = _read_cursor(after)
            sign = "<" if descending else ">"
            if order == key:
                conditions.append(f'"{key}" {sign} {put(last_key)}')
            else:
                conditions.append(f'("{order}", "{key}") {sign} ({put(place)}, {put(last_key)})')
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        down = " DESC" if descending else ""
        ordered = f'"{key}"{down}' if order == key else f'"{order}"{down}, "{key}"{down}'
        rows = await self._run(
            f"SELECT {self._selected} FROM {self._name}{where} ORDER BY {ordered} LIMIT {limit + 1:d}", arguments
        )
        found = [self._read(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(found, None)
        names = [column.name for column in self._columns]
        return Page(found, _make_cursor(rows[limit - 1][names.index(order)], rows[limit - 1][names.index(key)]))

    def _check_index(self, equal: Mapping[str, Any], order: str) -> None:
        key = self._table.key
        if any(value is None for value in equal.values()):
            raise ValueError("nothing equals None: give the fields of `equal` a value that says so")
        for index in self._table.indexes:
            fields = [*index, key]
            if set(fields[: len(equal)]) == set(equal) and order in fields[len(equal) : len(equal) + 1]:
                return
        if order == key and set(equal) <= {key}:
            return
        asked = ", ".join([*equal, order])
        raise ValueError(f"table {self._table.name}: no index begins with {asked}; add one to its `indexes`")

    def _written(self, value: T) -> list[Any]:
        dumped, plain = value.model_dump(mode="json"), value.model_dump()
        return [column.write(plain[column.name], dumped[column.name]) for column in self._columns]

    def _read(self, row: Sequence[Any]) -> Row[T]:
        fields = {column.name: column.read(value) for column, value in zip(self._columns, row, strict=False)}
        return Row(self._model.model_validate(fields), int(row[-1]))


def check_indexes(model: type[BaseModel]) -> None:
    """Raises StartupError for an index over what is kept as JSON, which has no order."""
    table = check_table(model)
    as_json = {column.name for column in columns_of(model) if column.plain is None}
    if found := sorted({field for index in table.indexes for field in index} & as_json):
        told = f"table {table.name}: {', '.join(found)} can't be in an index: only text, numbers and truths can"
        raise StartupError([told])


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def _plain(annotation: Any) -> Any:
    """str, int, float or bool, of `int | None`, `Annotated[int, ...]`, `Literal["a", "b"]` and enums of them too; None for all else."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain(arguments[0])
    if origin in (typing.Union, types.UnionType):
        kinds = {_plain(kind) for kind in arguments if kind is not types.NoneType}
        return kinds.pop() if len(kinds) == 1 else None
    if origin is typing.Literal:
        return str if all(isinstance(value, str) for value in arguments) else None
    if not isinstance(annotation, type):
        return None
    return next((kind for kind in (bool, str, int, float) if issubclass(annotation, kind)), None)


def _make_cursor(place: Any, key: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps((place, key))).decode()


def _read_cursor(text: str) -> tuple[Any, str]:
    try:
        place, key = orjson.loads(base64.urlsafe_b64decode(text))
        if isinstance(place, str | int | float) and isinstance(key, str):
            return place, key
    except (ValueError, TypeError):
        pass
    raise ValueError(f"after={text[:100]}: must be what a page gave as `next`")
