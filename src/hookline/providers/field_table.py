"""Field table: what a translation does with each field of a request, as data.

Lives here: one row, and the check that refuses what a table does not let through.
Elsewhere: the tables (`FIELDS` in anthropic_request.py and responses_request.py, `REFUSED` in completions_as_chat.py), and the code that writes what they promise.
Idea: code and docs read the same rows, so a field that is refused is documented as refused, with the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hookline.providers.untranslatable import JsonObject, Untranslatable, is_same, show


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field. `becomes` is the field on the other side, empty if it is never sent; `note` says how, or what to do instead."""

    becomes: str
    note: str
    harmless: tuple[object, ...] = ()
    """With `becomes` empty: the values that ask for nothing. They are accepted and not sent; every other value is an error."""
    is_ignored: bool = False
    """With `becomes` empty: accepted with any value and not sent, because it cannot change the answer."""


def refuse_by_table(payload: JsonObject, table: Mapping[str, Field], *, target: str) -> None:
    """Raise `Untranslatable` for the first field whose row refuses its value. Null is absent; fields without a row are not judged here."""
    for name, value in payload.items():
        row = table.get(name)
        if row is None or value is None or row.becomes or row.is_ignored:
            continue
        if not any(is_same(value, other) for other in row.harmless):
            raise Untranslatable(f'"{name}" = {show(value)} cannot be sent to {target}: {row.note}', param=name)
