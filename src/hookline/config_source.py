"""proxy.toml as read: data, line numbers, and `${NAME}` from the environment.

Lives here: `Source` and how it is read. Elsewhere: where a value stands (config_locator.py), what values mean and which are allowed (config.py).
Idea: whoever finds a problem, however late, asks the Source for `file:line`; a variable that is missing is a problem at once, except in an upstream's
key, where it is one only when that provider is used."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

from hookline.config_locator import Path, locate
from hookline.errors import StartupError

MAX_FILE_BYTES = 4 * 1024 * 1024
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TWO_PART_TABLES = frozenset({"providers", "models", "prices", "plugins", "tenants", "users"})
_LATE_KEYS = frozenset({"api_key", "api_keys"})


@dataclass
class Source:
    """One configuration as read. `file` is what problems call it; `path` is None for the embedded default."""

    file: str
    path: FilePath | None
    text: str
    data: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    missing_by_path: dict[Path, str] = field(default_factory=dict)
    """Upstream keys whose variable is not set: where, and the variable's name."""
    unresolved: set[Path] = field(default_factory=set)
    """Values whose reference is already among the problems: there is nothing more to say about them."""
    expanded: set[Path] = field(default_factory=set)
    """Values that came from the environment: never shown."""

    @property
    def directory(self) -> FilePath:
        """What relative paths in the file are relative to."""
        return self.path.parent if self.path is not None else FilePath()

    @cached_property
    def lines(self) -> Mapping[Path, int]:
        return locate(self.text)

    def at(self, path: Path) -> str:
        """`proxy.toml:12` for a path, or for the nearest table around it."""
        for end in range(len(path), 0, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return f"{self.file}:{line}"
        return self.file

    def problem(self, path: Path, text: str) -> str:
        """One whole sentence: `proxy.toml:12: [server] prot: unknown key`."""
        return f"{self.at(path)}: {name_of(path)}: {text}" if path else f"{self.file}: {text}"

    def in_order(self, problems: Iterable[str]) -> list[str]:
        """Each sentence once: those about this file by line, then the others as they came."""

        def place(problem: str) -> tuple[bool, int]:
            found = re.match(r":(\d+): ", problem.removeprefix(self.file))
            return (False, int(found[1])) if found else (not problem.startswith(f"{self.file}: "), 0)

        return sorted(dict.fromkeys(problems), key=place)


def name_of(path: Path) -> str:
    """A path as a person writes it: `[models."gpt-4o"] deployments[1].weight`."""
    size = 2 if path[0] in _TWO_PART_TABLES and len(path) > 1 else 1
    header = ".".join(_key(part) for part in path[:size])
    rest = ""
    for part in path[size:]:
        rest += f"[{part}]" if isinstance(part, int) else f".{_key(part)}"
    return f"[{header}] {rest.removeprefix('.')}".rstrip()


def _key(part: str | int) -> str:
    text = str(part)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else f'"{text}"'


def read_source(path: FilePath, environ: Mapping[str, str]) -> Source:
    """Read a file. Raises StartupError if there is no such file, or it is no TOML."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartupError([f"{path}: can't be read: {error.strerror or error}"]) from error
    if len(raw) > MAX_FILE_BYTES:
        raise StartupError([f"{path}: larger than {MAX_FILE_BYTES} bytes; this is no proxy.toml"])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StartupError([f"{path}:{line}: not UTF-8; save the file as UTF-8"]) from error
    return parse_source(text, file=str(path), path=path, environ=environ)


def parse_source(text: str, *, file: str, path: FilePath | None, environ: Mapping[str, str]) -> Source:
    """The same for text that is already there. Raises StartupError if it is no TOML."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartupError([_syntax_problem(error, file, text)]) from error
    source = Source(file=file, path=path, text=text, data=data)
    source.data = {key: _expand(value, (key,), source, environ) for key, value in data.items()}
    return source


def _syntax_problem(error: tomllib.TOMLDecodeError, file: str, text: str) -> str:
    message = str(error)
    place = _TOML_PLACE.search(message)
    if place is None:
        return f"{file}: not TOML: {message}"
    line = place.group(1) or str(text.count("\n") + 1)
    return f"{file}:{line}: not TOML: {message[: place.start()]}"


def _expand(value: Any, path: Path, source: Source, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, (*path, key), source, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*path, index), source, environ) for index, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        return _expand_text(value, path, source, environ)
    return value


def _expand_text(text: str, path: Path, source: Source, environ: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found.group(1)
        if name is None:
            return "${"
        if not _VARIABLE.fullmatch(name):
            source.problems.append(
                source.problem(path, "`${...}` must hold a variable's name; write `$${` for a plain `${`")
            )
            source.unresolved.add(path)
            return ""
        source.expanded.add(path)
        if environ.get(name):
            return environ[name]
        if _may_be_missing(path):
            source.missing_by_path[path] = name
        else:
            source.problems.append(source.problem(path, f"environment variable {name} is not set"))
            source.unresolved.add(path)
        return f"${{{name}}}"

    return _REFERENCE.sub(put, text)


def _may_be_missing(path: Path) -> bool:
    """An upstream's key: `[providers.x] api_key`, `api_keys[0]`, a deployment's own `api_key`."""
    return path[0] in {"providers", "models"} and any(part in _LATE_KEYS for part in path[2:])
