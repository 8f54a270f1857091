"""The chain at start-up: what is refused and how it is said, the order of hooks, life cycle, registration, timing."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy
import pytest
from pydantic import BaseModel

from hookline import hookimpl
from hookline.chain import PHASES, Chain, compile_chain
from hookline.errors import StartupError
from hookline.metrics_registry import MetricsRegistry
from hookline.plugin_checks import ARGUMENTS, REGISTRATION_HOOKS
from hookline.plugin_loading import PluginEntry
from hookline.testing.kit import PipelineKit, make_plugin

untyped = pluggy.HookimplMarker("hookline")


def compiled(*plugins: type | PluginEntry, order: Mapping[str, Sequence[str]] | None = None) -> Chain:
    entries = [p if isinstance(p, PluginEntry) else PluginEntry(p.__name__, factory=p) for p in plugins]
    return compile_chain(entries, make_host=lambda name, options: None, metrics=MetricsRegistry(), order=order)  # type: ignore[arg-type,return-value]


def problems_of(*plugins: type | PluginEntry, order: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    with pytest.raises(StartupError) as caught:
        compiled(*plugins, order=order)
    return caught.value.problems


def here(function: Any) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno}"


# -- what is refused


def test_a_misspelt_hook_is_refused_with_its_line_and_the_nearest_name() -> None:
    class Gate:
        @hookimpl
        def autenticate(self, call: Any) -> None: ...

    assert [
        f'{here(Gate.autenticate)}: plugin "Gate": there is no hook "autenticate"; did you mean "authenticate"?'
    ] == problems_of(Gate)


def test_an_unknown_argument_is_refused_with_the_nearest_name() -> None:
    class Gate:
        @hookimpl
        def edit_reply(self, call: Any, replay: Any) -> Any: ...

    said = problems_of(Gate)

    assert (
        f'{here(Gate.edit_reply)}: plugin "Gate": edit_reply has no argument "replay"; did you mean "reply"?' == said[0]
    )


def test_a_missing_argument_is_refused_with_the_line_to_write() -> None:
    class Gate:
        @hookimpl
        def select(self, call: Any) -> Any: ...

    assert [
        f'{here(Gate.select)}: plugin "Gate": select lacks targets; write def select(self, call, targets)'
    ] == problems_of(Gate)


def test_arguments_in_another_order_are_refused() -> None:
    class Gate:
        @hookimpl
        def select(self, targets: Any, call: Any) -> Any: ...

    assert [
        f'{here(Gate.select)}: plugin "Gate": select has its arguments in another order; write def select(self, call, targets)'
    ] == problems_of(Gate)


def test_keyword_only_and_starred_arguments_are_refused_because_hooks_are_called_by_position() -> None:
    class Gate:
        @hookimpl
        def admit(self, *, call: Any) -> None: ...

    class Fence:
        @hookimpl
        def admit(self, *call: Any) -> None: ...

    said = problems_of(Gate, Fence)

    assert f'{here(Gate.admit)}: plugin "Gate": admit must take plain arguments; write def admit(self, call)' == said[0]
    assert (
        f'{here(Fence.admit)}: plugin "Fence": admit must take plain arguments; write def admit(self, call)' == said[1]
    )


@pytest.mark.parametrize("flag", ["tryfirst", "trylast", "hookwrapper", "wrapper", "optionalhook"])
def test_a_flag_that_pluggy_knows_and_the_chain_does_not_is_refused(flag: str) -> None:
    class Gate:
        @untyped(**{flag: True})
        def admit(self, call: Any) -> None: ...

    (said,) = problems_of(Gate)

    assert f'plugin "Gate": admit sets {flag}; the chain has no such options: order is set in [chain]' in said
    assert said.startswith(f"{__file__}:")


def test_a_hook_under_another_name_is_refused() -> None:
    class Gate:
        @untyped(specname="admit")
        def let_in(self, call: Any) -> None: ...

    (said,) = problems_of(Gate)

    assert 'there is no hook "let_in"' in said


def test_our_own_marker_offers_no_flags() -> None:
    with pytest.raises(TypeError):
        hookimpl(tryfirst=True)  # type: ignore[call-arg]


def test_an_async_edit_event_is_refused() -> None:
    class Gate:
        @hookimpl
        async def edit_event(self, call: Any, event: Any) -> Any: ...

    assert [f'{here(Gate.edit_event)}: plugin "Gate": edit_event must be a plain `def`'] == problems_of(Gate)


def test_an_async_registration_hook_is_refused() -> None:
    class Gate:
        @hookimpl
        async def register_routes(self, add: Any) -> None: ...

    assert [f'{here(Gate.register_routes)}: plugin "Gate": register_routes must be a plain `def`'] == problems_of(Gate)


def test_a_generator_hook_is_refused() -> None:
    class Gate:
        @hookimpl
        async def prepare(self, call: Any) -> Any:
            yield

        @hookimpl
        def admit(self, call: Any) -> Any:
            yield

    assert [
        f'{here(Gate.admit)}: plugin "Gate": admit must be a plain `def` or `async def`, not a generator',
        f'{here(Gate.prepare)}: plugin "Gate": prepare must be a plain `def` or `async def`, not a generator',
    ] == problems_of(Gate)


def test_an_error_rule_that_does_not_exist_is_refused() -> None:
    (said,) = problems_of(make_plugin("gate", on_error="close", lookup=lambda call: None))

    assert 'plugin "gate": on_error = \'close\'; the only rule a plugin may choose is "closed"' in said


def test_a_hook_without_the_marker_is_refused_also_where_it_hides_an_inherited_one() -> None:
    """Left out in silence, a plugin that masks or guards would do nothing."""

    class Gate:
        @hookimpl
        def admit(self, call: Any) -> None: ...

    class Inner(Gate):
        def admit(self, call: Any) -> None: ...

        def register_routes(self, add: Any) -> None: ...

    said = "lacks @hookimpl, so it would never be called; mark it, or give it another name"
    assert [
        f'{here(Inner.admit)}: plugin "Inner": admit {said}',
        f'{here(Inner.register_routes)}: plugin "Inner": register_routes {said}',
    ] == problems_of(Inner)


def test_a_marker_above_staticmethod_or_classmethod_is_refused_and_below_them_works() -> None:
    class Gate:
        @hookimpl
        @staticmethod
        def admit(call: Any) -> None: ...

        @hookimpl
        @classmethod
        def prepare(cls, call: Any) -> None: ...

    class Right:
        @staticmethod
        @hookimpl
        def admit(call: Any) -> None: ...

        @classmethod
        @hookimpl
        def prepare(cls, call: Any) -> None: ...

    assert [text.rpartition(": ")[2] for text in problems_of(Gate)] == [
        "write @hookimpl below @staticmethod",
        "write @hookimpl below @classmethod",
    ]
    assert [row[0] for row in compiled(Right).table()] == ["prepare", "admit"]


def test_a_hook_set_on_the_instance_is_checked_like_a_method() -> None:
    class Gate:
        def __init__(self, options: Any, host: Any) -> None:
            self.prepare = hookimpl(lambda: None)
            self.admit = hookimpl(functools.partial(print))

    assert [text.rpartition('plugin "Gate": ')[2] for text in problems_of(Gate)] == [
        "admit must be a plain `def` or `async def`, not an object of partial",
        "prepare lacks call; write def prepare(self, call)",
    ]


def test_an_async_hook_in_a_plain_wrapper_is_refused_because_nobody_would_await_it() -> None:
    def traced(function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            return function(*args)

        return run

    class Gate:
        @hookimpl
        @traced
        async def prepare(self, call: Any) -> None: ...

        @hookimpl
        @traced
        def admit(self, call: Any) -> None: ...

    (said,) = problems_of(Gate)

    assert "prepare is an `async def` in a plain wrapper" in said


def test_a_property_is_not_asked_for() -> None:
    class Gate:
        @property
        def state(self) -> Any:
            raise RuntimeError("not yet")

        @hookimpl
        def admit(self, call: Any) -> None: ...

    assert [row[0] for row in compiled(Gate).table()] == ["admit"]


class LimitOptions(BaseModel, extra="forbid"):
    limit: int = 1


def test_a_bad_option_is_refused_and_the_factory_not_called() -> None:
    made: list[Any] = []

    class Gate:
        Options = LimitOptions

        def __init__(self, options: Any, host: Any) -> None:
            made.append(options)

    (said,) = problems_of(PluginEntry("gate", options={"limti": 3}, factory=Gate, where="proxy.toml:7"))

    assert said.startswith("proxy.toml:7: ")
    assert "limti" in said
    assert made == []


def test_options_of_a_model_are_merged_over_the_plugins_and_checked_by_the_same_rules() -> None:
    class Gate:
        Options = LimitOptions

        def __init__(self, options: Any, host: Any) -> None:
            self.host = host

    def entry(by_model: dict[str, Any]) -> PluginEntry:
        return PluginEntry("gate", options={"limit": 3}, options_by_model=by_model, factory=Gate)

    hosts = {}
    compile_chain(
        [entry({"a": {"limit": 5}, "b": {}})],
        make_host=lambda name, options: hosts.setdefault(name, options),  # type: ignore[arg-type,return-value]
        metrics=MetricsRegistry(),
    )

    assert {"a": LimitOptions(limit=5), "b": LimitOptions(limit=3)} == hosts["gate"]
    assert "limit" in problems_of(entry({"a": {"limit": "many"}}))[0]


def test_a_misspelt_option_is_refused_where_the_model_does_not_say_what_becomes_of_it() -> None:
    class Gate:
        class Options(BaseModel):
            limit: int = 1

        def __init__(self, options: Any, host: Any) -> None: ...

    (said,) = problems_of(PluginEntry("gate", options={"limt": 2}, factory=Gate))

    assert "limt" in said


def test_options_and_hooks_are_checked_together() -> None:
    class Gate:
        Options = LimitOptions

        def __init__(self, options: Any, host: Any) -> None: ...

        @hookimpl
        def admitt(self, call: Any) -> None: ...

    said = problems_of(PluginEntry("gate", options={"limit": "many"}, factory=Gate))

    assert "limit" in said[0]
    assert 'there is no hook "admitt"' in said[1]


def test_options_that_are_no_model_or_reach_nobody_and_a_constructor_of_another_shape_are_refused() -> None:
    class NoModel:
        class Options: ...

    class Unread:
        Options = LimitOptions

    class Narrow:
        def __init__(self, options: Any) -> None: ...

    assert problems_of(NoModel, Unread, Narrow) == [
        'proxy.toml: plugin "NoModel": Options must be a pydantic model: class Options(BaseModel)',
        'proxy.toml: plugin "Unread" has Options and nothing that takes them; write def __init__(self, options, host)',
        'proxy.toml: plugin "Narrow" must take two arguments; write def __init__(self, options, host)',
    ]


def test_a_plugin_that_exits_or_raises_startup_error_is_a_sentence_that_names_it() -> None:
    class Exits:
        def __init__(self, options: Any, host: Any) -> None:
            raise SystemExit(3)

    class Says:
        def __init__(self, options: Any, host: Any) -> None:
            raise StartupError(["no table of rules"])

    assert problems_of(Exits, Says) == [
        'proxy.toml: plugin "Exits" failed to start: SystemExit: 3',
        'proxy.toml: plugin "Says": no table of rules',
    ]


def test_a_name_that_two_packages_offer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [importlib.metadata.EntryPoint("gate", f"{name}:Plugin", "hookline") for name in ("one", "two", "one")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: importlib.metadata.EntryPoints(points))

    (said,) = problems_of(PluginEntry("gate"))

    assert (
        said == 'proxy.toml: plugin "gate" is installed more than once (one:Plugin, two:Plugin); uninstall all but one'
    )


def test_an_entry_point_that_leads_to_a_module_is_told_the_line_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("gate", "json", "hookline")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: importlib.metadata.EntryPoints([point]))

    (said,) = problems_of(PluginEntry("gate"))

    assert said == 'proxy.toml: plugin "gate": its entry point leads to no class; write gate = "json:Plugin"'


def test_options_for_a_plugin_that_takes_none_are_refused() -> None:
    said = problems_of(PluginEntry("gate", options={"limit": 3}, factory=make_plugin("gate"), where="proxy.toml:7"))

    assert said == ['proxy.toml:7: plugin "gate" takes no options, remove [plugins.gate]']


def test_a_plugin_that_is_not_installed_is_refused_with_the_nearest_installed_name() -> None:
    assert problems_of(PluginEntry("fallbak", where="proxy.toml:4")) == [
        'proxy.toml:4: plugin "fallbak" is not installed; did you mean "fallback"?'
    ]


def test_a_plugin_with_a_name_like_no_other_is_told_what_is_installed() -> None:
    (said,) = problems_of(PluginEntry("zzz", where="proxy.toml:4"))

    assert said.startswith('proxy.toml:4: plugin "zzz" is not installed; installed are: ')
    assert "fallback" in said


def test_an_installed_plugin_that_does_not_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = importlib.metadata.EntryPoint("broken", "hookline_no_such_module:Plugin", "hookline")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: importlib.metadata.EntryPoints([broken]))

    (said,) = problems_of(PluginEntry("broken", where="proxy.toml:4"))

    assert said.startswith('proxy.toml:4: plugin "broken": hookline_no_such_module:Plugin does not import: ')


def test_a_constructor_that_raises_is_a_sentence_and_not_a_traceback() -> None:
    class Gate:
        def __init__(self, options: Any, host: Any) -> None:
            raise OSError("no such file: /etc/gate")

    assert problems_of(Gate) == ['proxy.toml: plugin "Gate" failed to start: OSError: no such file: /etc/gate']


def test_the_same_plugin_twice_is_refused() -> None:
    gate = make_plugin("gate")

    assert problems_of(
        PluginEntry("gate", factory=gate, where="proxy.toml:4"), PluginEntry("gate", factory=gate, where="proxy.toml:5")
    ) == ['proxy.toml:5: plugin "gate" is listed twice']


def test_everything_that_is_wrong_is_said_at_once() -> None:
    class Gate:
        @hookimpl
        def autenticate(self, call: Any) -> None: ...

        @hookimpl
        def admit(self, call: Any, extra: Any) -> None: ...

    said = problems_of(
        Gate, PluginEntry("fallbak"), PluginEntry("limits", options={"x": 1}, factory=make_plugin("limits")),
        order={"call_endet": ["nobody"]},
    )  # fmt: skip

    assert len(said) == 6, said
    for words in ("autenticate", '"extra"', "fallbak", "takes no options", "order.call_endet", '"nobody"'):
        assert any(words in line for line in said), words


# -- files


def file_entry(folder: Path, source: str, name: str = "filed") -> PluginEntry:
    path = folder / f"{name}.py"
    path.write_text(source)
    return PluginEntry(name, path=path, where="proxy.toml:9")


def test_a_single_file_is_a_plugin(tmp_path: Path) -> None:
    chain = compiled(
        file_entry(
            tmp_path,
            "from hookline import hookimpl\n\nclass Plugin:\n    @hookimpl\n    def prepare(self, call):\n        call.tags.append('x')\n",
        )
    )

    assert [("prepare", 1, "filed", f"{tmp_path / 'filed.py'}:4")] == chain.table()


def test_a_file_changed_within_the_second_is_loaded_anew_and_leaves_no_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytecode is valid for a source of the same size and the same whole second: an editor is faster."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    source = "from hookline import hookimpl\n\nclass Plugin:\n    word = 'aa'\n"

    words = []
    for word in ("aa", "bb"):
        entry = file_entry(tmp_path, source.replace("aa", word))
        os.utime(entry.path, (1_700_000_000, 1_700_000_000))
        words.append(compiled(entry).plugins[0].instance.word)

    assert (words, os.listdir(tmp_path)) == (["aa", "bb"], ["filed.py"])


def test_a_file_without_a_class_named_plugin_is_refused(tmp_path: Path) -> None:
    entry = file_entry(tmp_path, "class Filter: ...\n")

    assert [f'proxy.toml:9: plugin "filed": {entry.path} defines no class `Plugin`'] == problems_of(entry)


def test_a_hook_outside_the_class_is_refused_with_its_line(tmp_path: Path) -> None:
    """As pluggy has it elsewhere: marked functions of a module."""
    path = tmp_path / "shout.py"
    path.write_text("from hookline import hookimpl\n\n@hookimpl\ndef prepare(call): ...\n\nclass Plugin: ...\n")

    assert [
        f'{path}:3: plugin "shout": prepare stands outside a class; hooks are methods of class `Plugin`'
    ] == problems_of(PluginEntry("shout", path=path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    entry = PluginEntry("filed", path=tmp_path / "nowhere.py", where="proxy.toml:9")

    assert [f'proxy.toml:9: plugin "filed": no Python file at {entry.path}'] == problems_of(entry)


def test_a_file_that_fails_while_it_loads_is_refused_with_the_line_that_failed(tmp_path: Path) -> None:
    entry = file_entry(tmp_path, "import hookline\n\nhookline.no_such_thing\n")

    (said,) = problems_of(entry)

    assert said.startswith(f'proxy.toml:9: plugin "filed": {entry.path}:3 does not load: AttributeError: ')


def test_a_file_with_a_syntax_error_is_refused_with_its_line(tmp_path: Path) -> None:
    entry = file_entry(tmp_path, "\n\ndef broken(:\n")

    (said,) = problems_of(entry)

    assert said.startswith(f'proxy.toml:9: plugin "filed": {entry.path}:3 does not load: SyntaxError: ')


# -- order


def test_hooks_run_in_list_order_and_reversed_ones_backwards() -> None:
    chain = compiled(*(make_plugin(name, **{hook: function_for(hook) for hook in PHASES}) for name in ("a", "b", "c")))

    ordered = {hook: "".join(impl.plugin for impl in chain.hook(hook)) for hook in PHASES}

    backwards = {"attempt_ended", "edit_reply", "edit_event", "call_ended"}
    assert {hook: "cba" if hook in backwards else "abc" for hook in PHASES} == ordered


def test_order_puts_the_named_first_in_one_hook_and_leaves_the_rest_as_listed() -> None:
    plugins = [make_plugin(n, call_ended=function_for("call_ended"), admit=function_for("admit")) for n in "abc"]

    chain = compiled(*plugins, order={"call_ended": ["b"]})

    assert [impl.plugin for impl in chain.call_ended] == ["b", "c", "a"]
    assert [impl.plugin for impl in chain.admit] == ["a", "b", "c"]


def test_order_of_an_unknown_hook_or_plugin_is_refused() -> None:
    said = problems_of(make_plugin("a"), order={"call_endet": ["a"], "admit": ["b"]})

    assert said == [
        '[chain] order.call_endet: there is no per-call hook of this name; did you mean "call_ended"?',
        '[chain] order.admit: plugin "b" is not in [chain] plugins',
    ]


@pytest.mark.parametrize("hook", ["edit_reply", "edit_event"])
def test_order_of_edits_is_refused_because_they_are_an_onion(hook: str) -> None:
    """Which edits a plugin's own reply passes follows from its place in the list; a second order would contradict it."""
    (said,) = problems_of(make_plugin("a"), order={hook: ["a"]})

    assert f"[chain] order.{hook}: edits follow the order of [chain] plugins; move the plugin there" == said


def test_the_table_has_hook_order_plugin_and_place() -> None:
    class Gate:
        @hookimpl
        def admit(self, call: Any) -> None: ...

        @hookimpl
        def prepare(self, call: Any) -> None: ...

    assert [
        ("prepare", 1, "Gate", here(Gate.prepare)),
        ("admit", 1, "Gate", here(Gate.admit)),
    ] == compiled(Gate).table()


def function_for(hook: str) -> Any:
    """A function with a hook's arguments that hands on what it is given."""
    arguments = ", ".join(ARGUMENTS[hook])
    last = ARGUMENTS[hook][-1]
    space: dict[str, Any] = {}
    exec(f"def {hook}({arguments}): return {last if hook in ('select', 'edit_reply', 'edit_event') else None}", space)
    return space[hook]


# -- life cycle


async def test_plugins_start_in_order_and_stop_backwards(journal: Any) -> None:
    async def stop_b() -> None:
        journal.append("stop b")

    chain = compiled(
        make_plugin("a", start=lambda: journal.append("start a"), stop=lambda: journal.append("stop a")),
        make_plugin("b", stop=stop_b),
        make_plugin("c", start=lambda: journal.append("start c")),
    )

    await chain.start()
    await chain.stop()

    assert journal == ["start a", "start c", "stop b", "stop a"]


async def test_stop_runs_for_all_even_where_start_failed(journal: Any) -> None:
    def fail() -> None:
        raise OSError("no database")

    chain = compiled(
        make_plugin("a", stop=lambda: journal.append("stop a")),
        make_plugin("b", start=fail, stop=lambda: journal.append("stop b")),
        make_plugin("c", start=lambda: journal.append("start c"), stop=lambda: journal.append("stop c")),
    )

    with pytest.raises(StartupError, match="no database"):
        await chain.start()
    await chain.stop()

    assert journal == ["stop c", "stop b", "stop a"]


async def test_a_stop_that_raises_is_logged_with_its_plugin_and_keeps_nobody_from_stopping(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("still in use")

    chain = compiled(make_plugin("a", stop=lambda: journal.append("stop a")), make_plugin("b", stop=fail))

    await chain.stop()

    assert journal == ["stop a"]
    assert [r.getMessage() for r in caplog.records] == ['plugin "b": stop() failed']


async def test_a_start_that_raises_or_hangs_is_refused_with_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(self: Any) -> None:
        await asyncio.Event().wait()

    def fail(self: Any) -> None:
        raise OSError("no disk")

    monkeypatch.setattr("hookline.chain.START_S", 0.01)
    for start, why in ((hang, "not done within 0.01 s"), (fail, "OSError: no disk")):
        with pytest.raises(StartupError) as caught:
            await compiled(type("Gate", (), {"start": start})).start()

        assert [f'plugin "Gate": start() failed: {why}'] == caught.value.problems


async def test_a_stop_that_hangs_is_named_and_keeps_nobody_from_stopping(
    journal: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(self: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("hookline.chain.STOP_S", 0.01)
    first = type("First", (), {"stop": lambda self: journal.append("first stopped")})

    await compiled(first, type("Second", (), {"stop": hang})).stop()

    assert journal == ["first stopped"]
    assert [record.getMessage() for record in caplog.records] == ['plugin "Second": stop() failed']


def test_registrations_that_fail_are_said_together_with_plugin_and_place() -> None:
    class One:
        @hookimpl
        def register_routes(self, add: Any) -> None:
            raise ValueError("no path")

    class Two:
        @hookimpl
        def register_routes(self, add: Any) -> None:
            raise StartupError(["route taken"])

    with pytest.raises(StartupError) as caught:
        compiled(One, Two).register("register_routes", print)

    assert [
        f'{here(One.register_routes)}: plugin "One": register_routes failed: ValueError: no path',
        f'{here(Two.register_routes)}: plugin "Two": route taken',
    ] == caught.value.problems


@pytest.mark.parametrize("hook", REGISTRATION_HOOKS)
def test_registration_hooks_are_called_once_for_each_plugin_that_has_them(hook: str, journal: Any) -> None:
    chain = compiled(
        make_plugin("a", **{hook: lambda add: add("from a")}),
        make_plugin("b"),
        make_plugin("c", **{hook: lambda add: add("from c")}),
    )

    chain.register(hook, journal.append)

    assert journal == ["from a", "from c"]


# -- timing


async def test_the_first_call_and_one_in_64_have_their_hooks_timed() -> None:
    async def admit(call: Any) -> None: ...

    kit = PipelineKit(make_plugin("gate", prepare=lambda call: None, admit=admit))

    for _ in range(64):
        await kit.call()
    assert kit.metric("hookline_hook_seconds_count", plugin="gate", hook="prepare") == 1
    await kit.call()

    assert kit.metric("hookline_hook_seconds_count", plugin="gate", hook="prepare") == 2
    assert kit.metric("hookline_hook_seconds_count", plugin="gate", hook="admit") == 2


async def test_a_timed_call_obeys_the_same_rules(journal: Any) -> None:
    def admit(call: Any) -> None:
        raise ValueError("broken")

    kit = PipelineKit(journal.observer("watch"), make_plugin("gate", admit=admit))

    statuses = {(await kit.call()).status for _ in range(64)}

    assert {500} == statuses
    assert kit.metric("hookline_hook_errors_total", plugin="gate", hook="admit") == 64
    assert kit.metric("hookline_hook_seconds_count", plugin="gate", hook="admit") == 1


def test_options_per_model_that_nobody_reads_are_refused() -> None:
    """A limit that is silently ignored is worse than none."""
    gate = make_plugin("gate", has_model_options=False)
    entry = PluginEntry("gate", options_by_model={"m": {"limit": 3}}, where="proxy.toml:4", factory=gate)

    assert any('the same options for every model; move [models."m".plugins.gate] to' in p for p in problems_of(entry))
