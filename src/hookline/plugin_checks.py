"""Checking plugins: every way in which a plugin's methods differ from the hookspecs.

Lives here: arguments, flags, kinds of functions, the marker. Elsewhere: finding and making a plugin (plugin_loading.py), the order and the error
rule of hooks (chain.py).
Idea: a hook that would never be called, or not as written, is refused with file, line and the nearest right name. Nothing of the plugin runs for it:
attributes are looked at, not asked for, so that a property is no trap and a class whose options are wrong is checked all the same."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from hookline import hookspecs

REGISTRATION_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("register_"))
ARGUMENTS = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name in REGISTRATION_HOOKS or hasattr(spec, "hookline_phase")
}
"""Each hook's argument names, in order."""
SYNC_ONLY = frozenset({"edit_event", *REGISTRATION_HOOKS})


def hook_problems(plugin: str, subject: Any) -> Iterator[str]:
    """What is wrong with the hooks of `subject`: an instance, or the class when no instance could be made."""
    own = getattr(subject, "__dict__", {}) if not isinstance(subject, type) else {}
    for name in dir(subject):
        found = inspect.getattr_static(subject, name, None)
        function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        flags, who = flags_of(function), f'plugin "{plugin}"'
        if flags is None and flags_of(found) is not None:
            yield f"{location(function)}: {who}: {name}: write @hookimpl below @{type(found).__name__}"
        elif flags is None:
            if name in ARGUMENTS and isinstance(function, FunctionType):
                yield (
                    f"{location(function)}: {who}: {name} lacks @hookimpl, so it would never be called; "
                    "mark it, or give it another name"
                )
        elif not isinstance(function, FunctionType):
            yield f"{who}: {name} must be a plain `def` or `async def`, not an object of {type(function).__name__}"
        else:
            is_bound = name not in own and not isinstance(found, staticmethod)
            yield from (
                f"{location(function)}: {who}: {text}" for text in _differences(name, function, flags, is_bound)
            )


def stray_hooks(plugin: str, module: Any) -> Iterator[str]:
    """Functions of a plugin's module that are marked as hooks: nobody would call them."""
    for name, found in vars(module).items():
        if isinstance(found, FunctionType) and found.__module__ == module.__name__ and flags_of(found) is not None:
            place = location(found)
            yield f'{place}: plugin "{plugin}": {name} stands outside a class; hooks are methods of class `Plugin`'


def flags_of(function: Any) -> Mapping[str, Any] | None:
    """What the marker left on a function; None if it is not marked."""
    flags: Mapping[str, Any] | None = inspect.getattr_static(function, "hookline_impl", None)
    return flags


def _differences(name: str, function: FunctionType, flags: Mapping[str, Any], is_bound: bool) -> Iterator[str]:
    if name not in ARGUMENTS:
        near = difflib.get_close_matches(name, ARGUMENTS, 1, 0.0)[0]
        yield f'there is no hook "{name}"; did you mean "{near}"?'
        return
    used = sorted(flag for flag, value in flags.items() if value)
    if used:
        yield f"{name} sets {', '.join(used)}; the chain has no such options: order is set in [chain]"
    parameters = list(inspect.signature(function).parameters.values())[1 if is_bound else 0 :]
    got, wanted = tuple(p.name for p in parameters), ARGUMENTS[name]
    line = f"write def {name}(self, {', '.join(wanted)})"
    if any(p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters):
        yield f"{name} must take plain arguments; {line}"
        return
    for extra in (a for a in got if a not in wanted):
        near = difflib.get_close_matches(extra, wanted, 1, 0.0)[0]
        yield f'{name} has no argument "{extra}"; did you mean "{near}"?'
    if missing := [a for a in wanted if a not in got]:
        yield f"{name} lacks {', '.join(missing)}; {line}"
    elif got != wanted and set(got) == set(wanted):
        yield f"{name} has its arguments in another order; {line}"
    is_async = inspect.iscoroutinefunction(function)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        yield f"{name} must be a plain `def` or `async def`, not a generator"
    elif name in SYNC_ONLY and is_async:
        yield f"{name} must be a plain `def`"
    elif not is_async and inspect.iscoroutinefunction(inspect.unwrap(function)):
        yield f"{name} is an `async def` in a plain wrapper, and nobody would await it; make the wrapper `async def`"


def location(function: Any) -> str:
    """file:line of a hook implementation."""
    code = inspect.unwrap(getattr(function, "__func__", function)).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
