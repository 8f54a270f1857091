"""The chain: the plugins of `[chain]`, compiled into tuples of callables.

Lives here: which plugin runs when. Elsewhere: the hooks (hookspecs.py), loading a plugin (plugin_loading.py) and checking it (plugin_checks.py),
what an exception means (guards.py), who calls the hooks (pipeline.py).
Idea: pluggy is the registry, not the engine: everything that can be decided at start-up is, so that a hook costs one function call per call.

What pluggy allows and the chain does not honour (tryfirst, wrappers, fewer arguments, ...) is refused at start-up with a sentence."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from hookline import hookspecs
from hookline.errors import StartupError
from hookline.guards import Guard, timed
from hookline.hookspecs import Phase
from hookline.host import Host, Metrics
from hookline.plugin_checks import flags_of, location
from hookline.plugin_loading import Explain, PluginEntry, load_plugin, said

log = logging.getLogger("hookline.chain")

PHASES: dict[str, Phase] = {
    name: spec.hookline_phase for name, spec in vars(hookspecs).items() if hasattr(spec, "hookline_phase")
}
DECIDING_HOOKS = frozenset({"lookup", "admit_attempt", "after_failure", "rescue"})
"""Hooks that are open by default and that a plugin may close with `on_error = "closed"` on its class."""
START_S, STOP_S = 30.0, 5.0
"""How long one plugin's `start()` and `stop()` may take."""
TIMED_BUCKETS = (0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Impl:
    """One plugin's implementation of one hook. `run` obeys the hook's error rule and may answer `Waiting`; `index` is the plugin's place in `[chain]`."""

    plugin: str
    hook: str
    index: int
    run: Callable[..., Any]
    location: str


@dataclass(frozen=True, slots=True)
class ActivePlugin:
    name: str
    instance: Any
    index: int
    needs_shared_state: bool
    supports_dry_run: bool


class Chain:
    """Compiled hooks: `chain.admit` and so on are tuples of `Impl`, in the order in which they run."""

    __slots__ = (*PHASES, "plugins", "timed")

    def __init__(self, plugins: Sequence[ActivePlugin], impls: Mapping[str, Sequence[Impl]]) -> None:
        self.plugins = tuple(plugins)
        for name in PHASES:
            setattr(self, name, tuple(impls.get(name, ())))
        self.timed: Chain = self
        """The same chain with each hook's time observed; the pipeline takes it for one call in 64."""

    if TYPE_CHECKING:

        def __getattr__(self, hook: str) -> tuple[Impl, ...]: ...

    def hook(self, name: str) -> tuple[Impl, ...]:
        impls: tuple[Impl, ...] = getattr(self, name)
        return impls

    def table(self) -> list[tuple[str, int, str, str]]:
        """(hook, order, plugin, file:line), as `hookline plugins` prints it."""
        return [(name, n, i.plugin, i.location) for name in PHASES for n, i in enumerate(self.hook(name), 1)]

    def without(self, plugins: Iterable[str]) -> Chain:
        """This chain without the hooks of `plugins` (dry runs leave out those that can't answer without taking)."""
        left_out = set(plugins)
        return Chain(self.plugins, {n: [i for i in self.hook(n) if i.plugin not in left_out] for n in PHASES})

    async def start(self) -> None:
        """Run each plugin's `start()`, in order. Raises StartupError naming the one that failed or took too long."""
        for plugin in self.plugins:
            try:
                async with asyncio.timeout(START_S):
                    await _maybe_await(getattr(plugin.instance, "start", None))
            except StartupError:
                raise
            except Exception as error:
                log.debug('plugin "%s": start() failed', plugin.name, exc_info=error)
                why = f"not done within {START_S:g} s" if isinstance(error, TimeoutError) else said(error)
                raise StartupError([f'plugin "{plugin.name}": start() failed: {why}']) from error

    async def stop(self) -> None:
        """Run each plugin's `stop()` in reverse, also where `start` failed; one that fails or hangs is logged, the others still run."""
        for plugin in reversed(self.plugins):
            try:
                async with asyncio.timeout(STOP_S):
                    await _maybe_await(getattr(plugin.instance, "stop", None))
            except Exception:
                log.exception('plugin "%s": stop() failed', plugin.name)

    def register(self, hook: str, add: Callable[..., Any]) -> None:
        """Call one registration hook of every plugin that has it. Raises StartupError with all that went wrong, each with its plugin."""
        problems: list[str] = []
        for plugin in self.plugins:
            function = getattr(plugin.instance, hook, None)
            if flags_of(getattr(function, "__func__", function)) is None:
                continue
            try:
                function(add=add)  # type: ignore[misc]
            except Exception as error:
                told = error.problems if isinstance(error, StartupError) else [f"{hook} failed: {said(error)}"]
                problems += [f'{location(function)}: plugin "{plugin.name}": {text}' for text in told]
        if problems:
            raise StartupError(problems)


def compile_chain(
    entries: Sequence[PluginEntry],
    *,
    make_host: Callable[[str, Mapping[str, Any]], Host],
    metrics: Metrics,
    order: Mapping[str, Sequence[str]] | None = None,
    explain: Explain | None = None,
    explain_order: Callable[[str, str], str] | None = None,
    hook_timeout_s: float = 5.0,
) -> Chain:
    """Load, check and order the plugins. Raises StartupError with everything that is wrong, each with file and line."""
    problems: list[str] = []
    plugins: list[ActivePlugin] = []
    manager = pluggy.PluginManager("hookline")
    manager.add_hookspecs(hookspecs)
    for index, entry in enumerate(entries):
        if manager.has_plugin(entry.name):
            problems.append(f'{entry.where}: plugin "{entry.name}" is listed twice')
            continue
        try:
            instance = load_plugin(entry, make_host, explain)
            manager.register(instance, name=entry.name)
        except StartupError as error:
            problems += error.problems
            continue
        needs, dry = getattr(instance, "needs_shared_state", False), getattr(instance, "supports_dry_run", False)
        plugins.append(ActivePlugin(entry.name, instance, index, needs, dry))
    say = explain_order or (lambda hook, text: f"[chain] order.{hook}: {text}")
    problems += (say(hook, text) for hook, text in _check_order(order or {}, [e.name for e in entries]))
    if problems:
        raise StartupError(problems)
    manager.check_pending()

    failed = metrics.counter("hookline_hook_errors_total", "Hooks that raised or were late.", ("plugin", "hook"))
    seconds = metrics.histogram(
        "hookline_hook_seconds", "Time in a hook, one call in 64.", ("plugin", "hook"), buckets=TIMED_BUCKETS
    )
    plain: dict[str, list[Impl]] = {}
    slow: dict[str, list[Impl]] = {}
    for name, rules in PHASES.items():
        for plugin in _in_order(plugins, rules, (order or {}).get(name, ())):
            function = getattr(plugin.instance, name, None)
            if function is None or not hasattr(function, "hookline_impl"):
                continue
            is_closed = rules.on_error == "closed" or (
                name in DECIDING_HOOKS and getattr(plugin.instance, "on_error", None) == "closed"
            )
            guard = Guard(
                plugin=plugin.name,
                hook=name,
                is_closed=is_closed,
                timeout_s=hook_timeout_s,
                failures=failed(plugin.name, name),
            )
            place = location(function)
            for chain, run in ((plain, function), (slow, timed(function, seconds(plugin.name, name)))):
                impl = Impl(plugin.name, name, plugin.index, guard.wrap(run), place)
                chain.setdefault(name, []).append(impl)
    compiled = Chain(plugins, plain)
    compiled.timed = Chain(plugins, slow)
    return compiled


def _in_order(plugins: Sequence[ActivePlugin], rules: Phase, first: Sequence[str]) -> list[ActivePlugin]:
    listed = list(reversed(plugins)) if rules.is_reversed else list(plugins)
    return sorted(listed, key=lambda p: first.index(p.name) if p.name in first else len(first))


def _check_order(order: Mapping[str, Sequence[str]], names: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(hook, what is wrong with it)."""
    for hook, first in order.items():
        if hook not in PHASES:
            near = difflib.get_close_matches(hook, PHASES, 1, 0.0)[0]
            yield hook, f'there is no per-call hook of this name; did you mean "{near}"?'
        elif hook in ("edit_reply", "edit_event"):
            yield hook, "edits follow the order of [chain] plugins; move the plugin there"
        for name in first:
            if name not in names:
                yield hook, f'plugin "{name}" is not in [chain] plugins'


async def _maybe_await(function: Callable[[], Any] | None) -> None:
    if function is not None:
        answer = function()
        if inspect.isawaitable(answer):
            await answer
