"""Loading plugins: from a name or a file to a checked instance.

Lives here: finding the class, checking its options and every method against the hookspecs. Elsewhere: the order and the error rule of hooks (chain.py).
Idea: whatever is wrong with a plugin is said at start-up, with file, line and the nearest right name, and all of it at once."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from pydantic import BaseModel, ValidationError

from hookline import hookspecs
from hookline.errors import StartupError
from hookline.host import Host

Explain = Callable[[ValidationError, tuple[str, ...], type[BaseModel]], list[str]]
"""Turns a failed options model and the path of its table into sentences with file and line."""

REGISTRATION_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("register_"))
ARGUMENTS = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name in REGISTRATION_HOOKS or hasattr(spec, "hookline_phase")
}
"""Each hook's argument names, in order."""


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """One line of `[chain] plugins`. `options` and `options_by_model` are raw tables; `where` is "proxy.toml:12".

    `factory` is given by who embeds Hookline or tests a plugin: the class itself, instead of a name to look up."""

    name: str
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    options_by_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    where: str = "proxy.toml"
    factory: Any = None


def load_plugin(
    entry: PluginEntry, make_host: Callable[[str, Mapping[str, Any]], Host], explain: Explain | None
) -> Any:
    """A checked instance of the plugin. Raises StartupError with everything that is wrong with it."""
    instance = _build(entry, make_host, explain)
    if problems := list(_check(entry, instance)):
        raise StartupError(problems)
    return instance


def find_class(entry: PluginEntry) -> Any:
    """The plugin's class: from its file, else from the entry points of group `hookline`. Raises StartupError."""
    if entry.factory is not None:
        return entry.factory
    if entry.path is not None:
        return _load_file(entry)
    found = importlib.metadata.entry_points(group="hookline")
    for point in found:
        if point.name == entry.name:
            try:
                return point.load()
            except Exception as error:
                told = f'{entry.where}: plugin "{entry.name}": {point.value} does not import: {said(error)}'
                raise StartupError([told]) from error
    near = difflib.get_close_matches(entry.name, found.names, 1)
    hint = f'; did you mean "{near[0]}"?' if near else f"; installed are: {', '.join(sorted(found.names))}"
    raise StartupError([f'{entry.where}: plugin "{entry.name}" is not installed{hint}'])


def _build(
    entry: PluginEntry,
    make_host: Callable[[str, Mapping[str, Any]], Host],
    explain: Explain | None,
) -> Any:
    """Check the options and call the factory."""
    factory = find_class(entry)
    model: type[BaseModel] | None = getattr(factory, "Options", None)
    problems: list[str] = []

    def checked(raw: Mapping[str, Any], prefix: tuple[str, ...]) -> BaseModel | None:
        if model is None:
            if raw:
                problems.append(f'{entry.where}: plugin "{entry.name}" takes no options, remove [{".".join(prefix)}]')
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            problems.extend(explain(error, prefix, model) if explain else [f"{entry.where}: {error}"])
            return None

    options = checked(entry.options, ("plugins", entry.name))
    by_model = {
        name: checked({**entry.options, **raw}, ("models", name, "plugins", entry.name))
        for name, raw in entry.options_by_model.items()
    }
    if problems:
        raise StartupError(problems)
    try:
        return factory() if factory.__init__ is object.__init__ else factory(options, make_host(entry.name, by_model))
    except StartupError:
        raise
    except Exception as error:
        raise StartupError([f'{entry.where}: plugin "{entry.name}" failed to start: {said(error)}']) from error


def _check(entry: PluginEntry, instance: Any) -> Iterable[str]:
    """Every way in which the methods differ from the hookspecs."""
    rule = getattr(instance, "on_error", None)
    if rule not in (None, "closed"):
        yield f'{entry.where}: plugin "{entry.name}": on_error = {rule!r}; the only rule a plugin may choose is "closed"'
    for name in dir(type(instance)):
        function = getattr(instance, name, None)
        flags = getattr(function, "hookline_impl", None)
        if flags is None or function is None:
            continue
        place, who = location(function), f'plugin "{entry.name}"'
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS, 1, 0.0)[0]
            yield f'{place}: {who}: there is no hook "{name}"; did you mean "{near}"?'
            continue
        used = sorted(flag for flag, value in flags.items() if value)
        if used:
            yield f"{place}: {who}: {name} sets {', '.join(used)}; the chain has no such options: order is set in [chain]"
        parameters, wanted = inspect.signature(function).parameters, ARGUMENTS[name]
        got, line = tuple(parameters), f"write def {name}(self, {', '.join(wanted)})"
        if any(p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters.values()):
            yield f"{place}: {who}: {name} must take plain arguments; {line}"
            continue
        for extra in (a for a in got if a not in wanted):
            near_arguments = difflib.get_close_matches(extra, wanted, 1, 0.0)
            yield f'{place}: {who}: {name} has no argument "{extra}"; did you mean "{near_arguments[0]}"?'
        if missing := [a for a in wanted if a not in got]:
            yield f"{place}: {who}: {name} lacks {', '.join(missing)}; {line}"
        elif got != wanted and set(got) == set(wanted):
            yield f"{place}: {who}: {name} has its arguments in another order; {line}"
        must_be_sync = name == "edit_event" or name in REGISTRATION_HOOKS
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            yield f"{place}: {who}: {name} must be a plain `def` or `async def`, not a generator"
        elif must_be_sync and inspect.iscoroutinefunction(function):
            yield f"{place}: {who}: {name} must be a plain `def`"


class _SourceLoader(SourceFileLoader):
    """Always the source, and no `__pycache__` beside people's files: bytecode is kept by whole seconds, and a reload may come within one."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(entry: PluginEntry) -> Any:
    path = entry.path
    assert path is not None
    name = f"hookline_file_{entry.name}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
    if spec is None or spec.loader is None or not path.is_file():
        raise StartupError([f'{entry.where}: plugin "{entry.name}": no Python file at {path}'])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(path, error)
        told = f'{entry.where}: plugin "{entry.name}": {path}:{line} does not load: {said(error)}'
        raise StartupError([told]) from error
    if not isinstance(getattr(module, "Plugin", None), type):
        raise StartupError([f'{entry.where}: plugin "{entry.name}": {path} defines no class `Plugin`'])
    return module.Plugin


def _line_in(path: Path, error: Exception) -> int:
    """The last line of this file that took part in the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def location(function: Any) -> str:
    """file:line of a hook implementation."""
    code = inspect.unwrap(getattr(function, "__func__", function)).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
