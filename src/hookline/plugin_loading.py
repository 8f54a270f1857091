"""Loading plugins: from a name or a file to a checked instance.

Lives here: finding the class, checking its options, making the instance. Elsewhere: its methods against the hookspecs (plugin_checks.py), the order
and the error rule of hooks (chain.py).
Idea: whatever is wrong with a plugin is said at start-up, with file, line and the nearest right name, and all of it at once."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hookline.errors import StartupError
from hookline.host import Host
from hookline.plugin_checks import hook_problems, stray_hooks

Explain = Callable[[ValidationError, tuple[str, ...], type[BaseModel]], list[str]]
"""Turns a failed options model and the path of its table into sentences with file and line."""


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
    factory = load_class(entry)
    try:
        instance = _build(entry, factory, make_host, explain)
    except StartupError as error:
        raise StartupError([*error.problems, *hook_problems(entry.name, factory)]) from error
    problems = list(hook_problems(entry.name, instance))
    rule = getattr(instance, "on_error", None)
    if rule not in (None, "closed"):
        told = f'plugin "{entry.name}": on_error = {rule!r}; the only rule a plugin may choose is "closed"'
        problems.append(f"{entry.where}: {told}")
    if problems:
        raise StartupError(problems)
    return instance


def load_class(entry: PluginEntry) -> Any:
    """The plugin's class: from its file, else from the entry points of group `hookline`. Raises StartupError."""
    if entry.factory is not None:
        return entry.factory
    if entry.path is not None:
        return _load_file(entry)
    found = importlib.metadata.entry_points(group="hookline")
    points = {point.value: point for point in found if point.name == entry.name}
    if not points:
        near = difflib.get_close_matches(entry.name, found.names, 1)
        hint = f'; did you mean "{near[0]}"?' if near else f"; installed are: {', '.join(sorted(found.names))}"
        raise StartupError([f'{entry.where}: plugin "{entry.name}" is not installed{hint}'])
    if len(points) > 1:
        told = f'plugin "{entry.name}" is installed more than once ({", ".join(sorted(points))}); uninstall all but one'
        raise StartupError([f"{entry.where}: {told}"])
    ((value, point),) = points.items()
    try:
        factory = point.load()
    except (Exception, SystemExit) as error:
        told = f'{entry.where}: plugin "{entry.name}": {value} does not import: {said(error)}'
        raise StartupError([told]) from error
    if not callable(factory):
        told = f'its entry point leads to no class; write {entry.name} = "{value.partition(":")[0]}:Plugin"'
        raise StartupError([f'{entry.where}: plugin "{entry.name}": {told}'])
    return factory


def _build(
    entry: PluginEntry,
    factory: Any,
    make_host: Callable[[str, Mapping[str, Any]], Host],
    explain: Explain | None,
) -> Any:
    """Check the options and call the factory."""
    who = f'{entry.where}: plugin "{entry.name}"'
    declared = getattr(factory, "Options", None)
    if declared is not None and not (isinstance(declared, type) and issubclass(declared, BaseModel)):
        raise StartupError([f"{who}: Options must be a pydantic model: class Options(BaseModel)"])
    model = _without_unknown_keys(declared) if declared is not None else None
    problems: list[str] = []

    def checked(raw: Mapping[str, Any], prefix: tuple[str, ...]) -> BaseModel | None:
        if model is None:
            if raw:
                problems.append(f"{who} takes no options, remove [{'.'.join(prefix)}]")
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            told = explain(error, prefix, model) if explain else [f"{entry.where}: {error}"]
            # What stands in no table of its own (beside the name, or nowhere) has the line of the entry.
            file = entry.where.rpartition(":")[0]
            problems.extend(text.replace(f"{file}: ", f"{entry.where}: ", 1) if file else text for text in told)
        except Exception as error:
            problems.append(f"{who}: a validator of its options failed: {said(error)}")
        return None

    if entry.options_by_model and getattr(factory, "has_model_options", True) is False:
        models = ", ".join(f'[models."{name}".plugins.{entry.name}]' for name in entry.options_by_model)
        problems.append(f"{who} has the same options for every model; move {models} to [plugins.{entry.name}]")
    for name, raw in entry.options_by_model.items():
        for key in raw.keys() & shared_options(model):
            problems.append(
                f'{entry.where}: [models."{name}".plugins.{entry.name}] {key}: is the same for every model; '
                f"move it to [plugins.{entry.name}]"
            )
    options = checked(entry.options, ("plugins", entry.name))
    by_model = {
        name: checked({**entry.options, **raw}, ("models", name, "plugins", entry.name))
        for name, raw in entry.options_by_model.items()
    }
    takes_nothing = factory.__init__ is object.__init__
    if takes_nothing and model is not None:
        problems.append(f"{who} has Options and nothing that takes them; write def __init__(self, options, host)")
    elif not takes_nothing and not _takes_two(factory):
        problems.append(f"{who} must take two arguments; write def __init__(self, options, host)")
    if problems:
        raise StartupError(problems)
    try:
        return factory() if takes_nothing else factory(options, make_host(entry.name, by_model))
    except StartupError as error:
        names = (f'"{entry.name}"', f"[plugins.{entry.name}]")
        raise StartupError([p if any(n in p for n in names) else f"{who}: {p}" for p in error.problems]) from error
    except (Exception, SystemExit) as error:
        raise StartupError([f"{who} failed to start: {said(error)}"]) from error


def shared_options(model: type[BaseModel] | None) -> set[str]:
    """Options that can't differ per model: their `Field` has `json_schema_extra = {"per_model": False}`."""
    fields = model.model_fields if model is not None else {}
    return {
        name
        for name, field in fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("per_model") is False
    }


def _without_unknown_keys(model: type[BaseModel]) -> type[BaseModel]:
    """A misspelt option is refused unless the model says itself what becomes of unknown keys."""
    if model.model_config.get("extra") is not None:
        return model
    inherited = {"__module__": model.__module__, "__doc__": model.__doc__, "model_config": ConfigDict(extra="forbid")}
    return type(model.__name__, (model,), inherited)


def _takes_two(factory: Any) -> bool:
    try:
        inspect.signature(factory).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a callable that says nothing about its arguments
        return True
    return True


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
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(path, error)
        told = f'{entry.where}: plugin "{entry.name}": {path}:{line} does not load: {said(error)}'
        raise StartupError([told]) from error
    if strays := list(stray_hooks(entry.name, module)):
        raise StartupError(strays)
    if not isinstance(getattr(module, "Plugin", None), type):
        raise StartupError([f'{entry.where}: plugin "{entry.name}": {path} defines no class `Plugin`'])
    return module.Plugin


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of this file that took part in the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
