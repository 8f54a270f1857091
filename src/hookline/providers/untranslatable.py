"""Untranslatable: a request that cannot be said in another dialect, and the readers that find that out.

Lives here: the one exception of all translations, and small readers of a client's parsed JSON that give the asked type or raise it with the path of the field.
Elsewhere: what is translated into what (anthropic_*.py, completions_as_chat.py, responses_*.py); who turns this into the OpenAI 400 (the provider).
Idea: a client's JSON has any shape, so no translation indexes into it blindly: it asks a reader, and a wrong shape is an answer with a name, never a `KeyError`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

JsonObject = dict[str, Any]


class Untranslatable(ValueError):
    """A field that the other side cannot express, or whose value has the wrong shape.

    `str(error)` says what cannot be sent, to what, and what to do; `param` is the path of the field, as in `messages[2].content[0].type`."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def _wrong_type(value: object, path: str, wanted: str) -> Untranslatable:
    got = "null" if value is None else _KINDS.get(type(value), type(value).__name__)
    return Untranslatable(f'"{path}" must be {wanted}, got {got}', param=path)


def read_object(value: object, path: str) -> JsonObject:
    """The value, if it is an object. Raises `Untranslatable` naming `path`; so do all readers here."""
    if not isinstance(value, dict):
        raise _wrong_type(value, path, "an object")
    return value


def read_list(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(value, path, "an array")
    return value


def read_optional_list(value: object, path: str) -> list[Any]:
    """An array; null and absent are an empty one."""
    return [] if value is None else read_list(value, path)


def read_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(value, path, "a string")
    return value


def read_name(value: object, path: str) -> str:
    """A string that must say something: a name or an id."""
    text = read_text(value, path)
    if not text:
        raise Untranslatable(f'"{path}" must not be empty', param=path)
    return text


def read_bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(value, path, "a boolean")
    return value


def read_number(value: object, path: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(value, path, "a number")
    return value


def read_positive_int(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(value, path, "a whole number")
    if value < 1:
        raise Untranslatable(f'"{path}" must be at least 1, got {show(value)}', param=path)
    return value


def read_choice(value: object, path: str, choices: Iterable[str]) -> str:
    """One of a fixed set of words."""
    allowed = tuple(choices)
    text = read_text(value, path)
    if text not in allowed:
        raise Untranslatable(f'"{path}" must be one of {", ".join(allowed)}, got {show(text)}', param=path)
    return text


def refuse_unknown(fields: JsonObject, known: Container[str], path: str, *, target: str) -> None:
    """Raise for the first member that is set (not null) and not in `known`: what is not understood is never dropped."""
    for field, value in fields.items():
        if value is not None and field not in known:
            where = f"{path}.{field}" if path else field
            raise Untranslatable(
                f'"{where}" cannot be sent to {target}: it has no such field; leave it out', param=where
            )


def is_same(value: object, other: object) -> bool:
    """Equality as JSON sees it: `true` is not `1`, `0` is `0.0`."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def show(value: object) -> str:
    """A client's value for an error message: short, and only for scalars."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else f'"{value[:40]}…"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        text = repr(value)
        return text if len(text) <= 40 else "a very long number"
    return "null" if value is None else _KINDS.get(type(value), "a value")
