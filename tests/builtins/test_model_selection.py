"""Model selection: aliases, what a request needs, what a deployment lacks, and the orders."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hookline import Deployment, Price, Rejected, Target
from hookline.builtins.model_selection import Plugin, SelectionOptions
from hookline.builtins.model_selection.needs import Needs, lacks_of, needs_of
from hookline.builtins.model_selection.policies import Policy
from hookline.builtins.model_selection.qualifying import NO_DEMAND
from hookline.builtins.model_selection.qualifying import qualify as qualify_for
from hookline.testing.kit import PipelineKit, ScriptedProvider

NO_NEEDS = Needs(0, None, frozenset())


def target(id: str = "a/m", **facts) -> Target:
    provider, _, model = id.partition("/")
    return Target(Deployment(id, provider, model, **facts))


def ids(targets: list[Target]) -> list[str]:
    return [t.deployment.id for t in targets]


def qualify(call, targets: list[Target]) -> list[Target]:
    return qualify_for(call, targets, NO_DEMAND, Policy(SelectionOptions()))


def by_weight(*weights: float) -> list[Target]:
    return [target(f"d{index}/m", weight=weight) for index, weight in enumerate(weights)]


def image(url: str = "https://x/y.png") -> dict:
    return {
        "role": "user",
        "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}],
    }


@pytest.mark.parametrize(
    ("payload", "capabilities"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, set()),
        ({"messages": [image()]}, {"vision"}),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, {"vision"}),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, {"audio"}),
        ({"messages": [], "modalities": ["text", "audio"]}, {"audio"}),
        ({"messages": [], "tools": [{"type": "function"}]}, {"tools"}),
        ({"messages": [], "functions": [{"name": "f"}]}, {"tools"}),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, {"tools"}),
        ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}, {"tools"}),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, {"tools"}),
        ({"input": [{"type": "message", "role": "user", "content": "x"}]}, set()),
        ({"messages": [3, {"role": [], "type": 3}], "functions": 3}, set()),
        ({"messages": [], "response_format": {"type": "json_schema"}}, {"json_schema"}),
        ({"messages": [], "response_format": {"type": "json_object"}}, set()),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, {"json_schema"}),
        ({"messages": "odd", "tools": 3, "modalities": "x", "response_format": [], "input": {"a": 1}}, set()),
    ],
)
def test_needed_capabilities(make_call, payload, capabilities):
    assert needs_of(make_call({"model": "m", **payload})).capabilities == capabilities


def test_text_counts_towards_the_context_and_inline_images_do_not(make_call):
    data_url = "data:image/png;base64," + "A" * 100_000

    needs = needs_of(
        make_call({"messages": [{"role": "user", "content": "x" * 600}, image(data_url)], "max_tokens": 50})
    )

    assert (needs.input_tokens, needs.output_tokens) == (602 // 6, 50)


@pytest.mark.parametrize(
    ("facts", "needs", "reasons"),
    [
        ({}, Needs(10**9, 10**9, frozenset({"vision"})), []),
        ({"capabilities": frozenset({"tools"})}, NO_NEEDS, []),
        ({"capabilities": None}, Needs(0, None, frozenset({"tools"})), []),
        ({"capabilities": frozenset()}, Needs(0, None, frozenset({"vision", "tools"})), ["lacks tools, vision"]),
        ({"capabilities": frozenset({"tools"})}, Needs(0, None, frozenset({"tools"})), []),
        (
            {"capabilities": frozenset({"tools"})},
            Needs(0, None, frozenset({"vision", "audio"})),
            ["lacks audio, vision"],
        ),
        ({"context_tokens": 100}, Needs(80, 20, frozenset()), []),
        ({"context_tokens": 100}, Needs(81, 20, frozenset()), ["has a context of 100 tokens, at least 101 needed"]),
        ({"max_output_tokens": 50}, Needs(0, 50, frozenset()), []),
        ({"max_output_tokens": 50}, Needs(0, 51, frozenset()), ["writes at most 50 tokens, 51 asked for"]),
    ],
)
def test_what_a_deployment_lacks_by_what_it_declares(facts, needs, reasons):
    assert list(lacks_of(target(**facts).deployment, needs)) == reasons


def test_only_those_that_qualify_are_tried(make_call):
    targets = [
        target("small/m", context_tokens=10),
        target("blind/m", capabilities=frozenset({"tools"})),
        target("c/m"),
    ]

    assert ids(qualify(make_call({"messages": [{"role": "user", "content": "x" * 100}, image()]}), targets)) == ["c/m"]


def test_when_none_qualifies_the_400_names_what_excluded_each(make_call):
    targets = [target("small/m", context_tokens=10), target("blind/m", capabilities=frozenset({"tools"}))]

    with pytest.raises(Rejected) as raised:
        qualify(make_call({"model": "auto", "messages": [{"role": "user", "content": "x" * 100}, image()]}), targets)

    error = raised.value.error
    assert (error.status, error.error_code) == (400, "no_qualified_deployment")
    assert error.message == (
        'no deployment of "auto" can take this call: small/m has a context of 10 tokens, at least 17 needed; blind/m lacks vision'
    )


def test_when_only_length_excludes_the_code_is_the_one_sdks_know(make_call):
    targets = [target("a/m", context_tokens=10), target("b/m", context_tokens=12)]

    with pytest.raises(Rejected) as raised:
        qualify(make_call({"model": "auto", "messages": [{"role": "user", "content": "x" * 100}]}), targets)

    assert raised.value.error.error_code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("strategy", "weights", "draw", "first"),
    [
        ("auto", (1, 1), 0.9, "d0/m"),
        ("auto", (1, 2), 0.5, "d1/m"),
        ("listed", (1, 2), 0.5, "d0/m"),
        ("weighted", (1, 2), 0.5, "d1/m"),
    ],
)
def test_strategies(make_host, make_call, strategy, weights, draw, first):
    plugin = Plugin(SelectionOptions(strategy=strategy), make_host())
    plugin._draw = lambda: draw

    assert ids(plugin.select(make_call({"model": "m"}), by_weight(*weights)))[0] == first


def test_the_strategy_can_differ_per_model(make_host, make_call):
    plugin = Plugin(SelectionOptions(), make_host(options_by_model={"auto": SelectionOptions(strategy="cheapest")}))
    targets = [target("a/m", price=Price(9, 9)), target("b/m", price=Price(1, 1))]

    assert ids(plugin.select(make_call({"model": "auto"}), targets)) == ["b/m", "a/m"]
    assert ids(plugin.select(make_call({"model": "other"}), targets)) == ["a/m", "b/m"]


def test_a_single_deployment_is_left_alone_even_if_it_seems_too_small(make_host, make_call):
    targets = [target(context_tokens=1)]

    assert (
        Plugin(SelectionOptions(), make_host()).select(make_call({"model": "m", "prompt": "x" * 99}), targets)
        is targets
    )


async def test_an_alias_is_sent_and_routed_as_its_model():
    up = ScriptedProvider(name="up")
    kit = PipelineKit(
        Plugin,
        providers=[up],
        deployments={"gpt-4o": ["up/big"]},
        options={"model_selection": {"aliases": {"best": "gpt-4o"}}},
    )

    delivered = await kit.call({"model": "best", "messages": []})

    [(call, attempt)] = up.sent
    assert (delivered.status, call.model, attempt.deployment.id) == (200, "gpt-4o", "up/big")
    assert call.payload["model"] == "gpt-4o"
    assert b'"gpt-4o"' in call.body


def test_an_alias_of_an_alias_is_refused():
    with pytest.raises(ValidationError, match='"a" means "b", which is an alias too'):
        SelectionOptions(aliases={"a": "b", "b": "c"})
