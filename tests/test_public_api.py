"""The public API is frozen: every name of `hookline.__all__` with its signature stands in public_api.txt.

A change that is meant: `python tests/test_public_api.py` writes the file anew; the difference is then part of the review, and what goes away or
changes its meaning needs a deprecation first (CONTRIBUTING.md)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import hookline

SNAPSHOT = Path(__file__).parent / "public_api.txt"


def describe() -> str:
    """All public names, one line per thing that a plugin can depend on."""
    return "".join(f"{line}\n" for name in sorted(hookline.__all__) for line in lines_of(name, getattr(hookline, name)))


def lines_of(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield from class_lines(name, value)
    elif inspect.isfunction(value):
        yield f"def {name}{inspect.signature(value)}"
    elif isinstance(value, frozenset | set):
        yield f"{name} = {sorted(value)}"
    elif isinstance(value, dict):
        yield f"{name} = dict of {sorted(value)}"
    elif type(value).__module__.startswith("hookline"):
        yield f"{name}: {type(value).__name__}"
    else:
        yield f"{name} = {value!r}"


def class_lines(name: str, cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base not in (object, tuple)]
    yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    if (not getattr(cls, "_is_protocol", False) and "__init__" in vars(cls)) or hasattr(cls, "_fields"):
        yield f"    {name}{inspect.signature(cls)}"
    slots = {slot for slot in getattr(cls, "__slots__", ()) if not slot.startswith("_")}
    annotated = {member for member in inspect.get_annotations(cls) if not member.startswith("_")}
    for member in sorted(
        slots | annotated | {m for m in vars(cls) if not m.startswith("_")} | {"__call__"} & set(vars(cls))
    ):
        yield f"    {member_line(cls, member)}"


def member_line(cls: type, member: str) -> str:
    value = inspect.getattr_static(cls, member, None)
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} def {member}{inspect.signature(value.__func__)}"
    if inspect.isfunction(value):
        prefix = "async def" if inspect.iscoroutinefunction(value) else "def"
        return f"{prefix} {member}{inspect.signature(value)}"
    if isinstance(value, property):
        assert value.fget is not None
        return f"{member}: {inspect.signature(value.fget).return_annotation} (read-only)"
    annotation = inspect.get_annotations(cls).get(member)
    return f"{member}: {annotation}" if annotation is not None else member


def test_the_public_api_is_what_the_snapshot_says():
    assert describe().splitlines() == SNAPSHOT.read_text().splitlines(), (
        "the public API has changed; if that is meant: python tests/test_public_api.py"
    )


def test_every_public_name_is_documented_or_an_alias():
    undocumented = [
        name
        for name in hookline.__all__
        if (inspect.isclass(getattr(hookline, name)) or inspect.isfunction(getattr(hookline, name)))
        and not inspect.getdoc(getattr(hookline, name))
    ]

    assert undocumented == []


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
