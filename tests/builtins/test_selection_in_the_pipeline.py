"""Selection through the real pipeline: names, wishes, classes, places, costs, limits that upstreams told of, budgets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import orjson
import pytest

from hookline import (
    ANONYMOUS,
    BUDGET_LEFT,
    COMPLEXITY,
    SKIPPED,
    Deployment,
    Limits,
    Price,
    Principal,
    Reply,
    StartupError,
    Unavailable,
)
from hookline.builtins import cache, fallback, model_selection, rate_limit
from hookline.builtins.model_selection.options import Strategy
from hookline.builtins.model_selection.policies import Policy
from hookline.catalog import Catalog
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits, MemoryReplies
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, make_plugin, stream

CHEAP, MIDDLE, DEAR = Price(100_000, 400_000), Price(1_000_000, 3_000_000), Price(5_000_000, 20_000_000)
HARD = {"role": "user", "content": "Prove, derive, analyze and compare.\n```python\nx\n```"}
EASY = {"role": "user", "content": "Hi!"}


def dep(id: str, price: Price | None = MIDDLE, **facts) -> Deployment:
    provider, _, model = id.partition("/")
    return Deployment(id, provider, model, price=price, **facts)


SIZES = (dep("a/small", CHEAP), dep("b/medium", MIDDLE), dep("c/large", DEAR))
FAILS = answer(b"{}", 500)
CLASSES = {"simple": ["a/*"], "medium": ["b/medium"], "complex": ["*/large"]}


class World:
    """A gateway with these models; `[plugins.model_selection]` is `options`, `settings` what the host says."""

    def __init__(self, models, options=None, *, plugins=(), settings=None, principal=ANONYMOUS, **kit) -> None:
        names = sorted({d.provider for found in models.values() for d in found})
        self.providers = {name: ScriptedProvider(name=name) for name in names}
        self.kit = PipelineKit(
            model_selection.Plugin,
            *plugins,
            fallback.Plugin,
            providers=list(self.providers.values()),
            options={"model_selection": options or {}},
            host_settings={
                "tenants": {}, "users": {}, "global": {}, "server": {}, "models": list(models), "providers": names,
                "default_provider": None, "deployments": {n: [d.id for d in f] for n, f in models.items()},
                **(settings or {}),
            },
            **kit,
        )  # fmt: skip
        self.kit.pipeline.catalog = Catalog(
            models, providers=names, default_provider=None, build=lambda provider, model: dep(f"{provider}/{model}")
        )
        self.principal = principal

    def play(self, provider: str, *scripts) -> None:
        """What this provider does next; afterwards it answers again."""
        playing = self.providers[provider]
        playing.scripts = [*[answer] * len(playing.sent), *scripts, answer]

    @property
    def sent(self):
        return [sent for provider in self.providers.values() for sent in provider.sent]

    async def ask(self, *messages, model="auto", headers=None, principal=None, **members):
        payload = {"model": model, "messages": list(messages) or [EASY], **members}
        return await self.kit.call(payload, headers=headers, principal=principal or self.principal)

    async def chosen(self, *messages, **about) -> str:
        delivered = await self.ask(*messages, **about)
        assert delivered.status == 200, delivered.json()
        return delivered.headers["x-hookline-deployment"]


@pytest.fixture
def sizes():
    return lambda **options: World({"auto": SIZES}, {"complexity": CLASSES, **options})


# Classes


@pytest.mark.parametrize(
    ("message", "chosen", "complexity"), [(EASY, "a/small", "simple"), (HARD, "c/large", "complex")]
)
async def test_the_estimate_chooses_and_says_so(sizes, message, chosen, complexity):
    delivered = await sizes().ask(message)

    assert delivered.headers["x-hookline-deployment"] == chosen
    assert delivered.headers["x-hookline-complexity"] == complexity


@pytest.mark.parametrize(("asked", "chosen"), [("simple", "a/small"), ("medium", "b/medium"), ("complex", "c/large")])
async def test_the_request_says_its_class_by_header_or_member(sizes, asked, chosen):
    world = sizes()

    assert await world.chosen(headers={"x-hookline-complexity": asked}) == chosen
    assert await world.chosen(complexity=asked) == chosen
    assert await world.chosen(complexity="simple", headers={"X-Hookline-Complexity": asked}) == chosen


async def test_no_upstream_sees_the_wishes(sizes):
    world = sizes()

    await world.ask(complexity="medium", prefer_provider="b", max_cost={"usd": 1, "per_1k_usd": 1}, temperature=0.5)

    [(call, _)] = world.sent
    assert set(call.payload) == {"model", "messages", "temperature"}
    assert orjson.loads(call.body) == call.payload


async def test_other_endpoints_keep_members_of_these_names():
    world = World({"auto": SIZES})

    delivered = await world.kit.call({"model": "auto", "complexity": 9}, path="/v1/images/generations")

    assert delivered.status == 200
    assert world.sent[0][0].payload["complexity"] == 9


@pytest.mark.parametrize(
    ("members", "headers", "param"),
    [
        ({"complexity": "hard"}, {}, "complexity"),
        ({"complexity": 3}, {}, "complexity"),
        ({}, {"x-hookline-complexity": ""}, "complexity"),
        ({"prefer_provider": ["a"]}, {}, "prefer_provider"),
        ({"prefer_provider": "p" * 65}, {}, "prefer_provider"),
        ({"max_cost": "cheap"}, {}, "max_cost"),
        ({"max_cost": -1}, {}, "max_cost"),
        ({"max_cost": True}, {}, "max_cost"),
        ({"max_cost": {"eur": 1}}, {}, "max_cost"),
        ({"max_cost": [1]}, {}, "max_cost"),
        ({}, {"x-hookline-max-cost-usd": "nan"}, "x-hookline-max-cost-usd"),
        ({}, {"x-hookline-max-cost-usd": "1e99"}, "x-hookline-max-cost-usd"),
        ({}, {"x-hookline-max-cost-per-1k-usd": "x"}, "x-hookline-max-cost-per-1k-usd"),
    ],
)
async def test_a_wish_nobody_can_follow_is_a_400_that_names_it(sizes, members, headers, param):
    delivered = await sizes().ask(headers=headers, **members)

    assert (delivered.status, delivered.json()["error"]["param"]) == (400, param)


async def test_a_plugin_may_judge_in_place_of_the_estimate(make_host):
    judge = make_plugin("judge", prepare=lambda call: call.slots.__setitem__(COMPLEXITY, "medium"))
    world = World({"auto": SIZES}, {"complexity": CLASSES}, plugins=[judge])

    assert await world.chosen(HARD) == "b/medium"
    assert await world.chosen(HARD, complexity="simple") == "a/small"


async def test_operators_may_take_wishes_out_and_ignore_them(sizes):
    world = sizes(client_wishes=False)

    assert await world.chosen(EASY, complexity="complex", headers={"x-hookline-prefer-provider": "c"}) == "a/small"
    assert "complexity" not in world.sent[0][0].payload
    assert await world.chosen(EASY, max_cost="whatever") == "a/small"


async def test_a_higher_class_steps_in_and_a_lower_never(sizes):
    world = sizes()
    world.play("a", *[FAILS] * 9)
    assert await world.chosen(EASY) == "b/medium"

    world.play("c", *[FAILS] * 9)
    delivered = await world.ask(HARD)

    assert delivered.status == 500
    assert world.providers["b"].sent[1:] == []


async def test_who_serves_several_classes_is_near_to_each():
    both = {"simple": ["a/small", "c/large"], "medium": ["b/medium"], "complex": ["c/large"]}
    world = World({"auto": SIZES}, {"complexity": both, "prefer_provider": "c"})

    assert await world.chosen(complexity="simple") == "c/large"
    assert await world.chosen(complexity="medium") == "b/medium"


async def test_what_excluded_each_is_named():
    models = {
        "auto": (
            dep("a/small", capabilities=frozenset({"tools", "vision"})),
            dep("c/large", capabilities=frozenset({"tools"})),
        )
    }
    world = World(models, {"complexity": {"simple": ["a/small"], "complex": ["c/large"]}})
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}

    delivered = await world.ask(HARD, image, complexity="complex")

    error = delivered.json()["error"]
    assert (delivered.status, error["code"]) == (400, "no_qualified_deployment")
    assert error["message"] == (
        'no deployment of "auto" can take this call: a/small serves simple requests at most, this one is complex; c/large lacks vision'
    )


async def test_cheapest_wins_within_a_class():
    models = {"auto": (dep("a/x", DEAR), dep("b/y", CHEAP), dep("c/z", MIDDLE))}
    world = World(models, {"complexity": {"simple": ["a/x", "b/y"], "medium": ["c/z"], "complex": ["a/x"]}})

    assert await world.chosen(complexity="simple") == "b/y"
    assert await world.chosen(complexity="complex") == "a/x"


async def test_a_deployment_in_no_list_serves_every_class():
    world = World({"auto": (*SIZES, dep("d/any", Price(1, 1)))}, {"complexity": CLASSES})

    assert await world.chosen(complexity="complex") == "d/any"


# Preference, cost


async def test_the_preferred_provider_goes_first_and_the_others_stay():
    world = World({"auto": SIZES}, {"prefer_provider": "b"})

    assert await world.chosen() == "b/medium"
    assert await world.chosen(prefer_provider="c") == "c/large"
    assert await world.chosen(headers={"x-hookline-prefer-provider": "unknown"}) == "b/medium"
    world.play("b", FAILS)
    assert await world.chosen() == "a/small"


async def test_the_provider_that_a_request_prefers_comes_before_the_class_and_the_class_before_the_operators():
    world = World({"auto": SIZES}, {"prefer_provider": "b", "complexity": CLASSES})

    assert await world.chosen(complexity="simple") == "a/small"
    assert await world.chosen(complexity="simple", prefer_provider="c") == "c/large"
    assert await world.chosen(complexity="complex", prefer_provider="a") == "c/large"


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ({"max_cost": {"per_1k_usd": 0.003}}, "b/medium"),
        ({"headers": {"x-hookline-max-cost-per-1k-usd": "0.003"}}, "b/medium"),
        ({"max_cost": {"per_1k_usd": 0.0029}}, "a/small"),
        ({"max_tokens": 1000, "max_cost": 0.0035}, "b/medium"),
        ({"max_tokens": 1000, "headers": {"x-hookline-max-cost-usd": "0.0035"}}, "b/medium"),
        ({"max_tokens": 1000, "max_cost": 0.003}, "a/small"),
        ({}, "c/large"),
    ],
)
async def test_a_cost_ceiling_leaves_out_what_is_dearer(wish, chosen):
    world = World({"auto": tuple(reversed(SIZES))})

    assert await world.chosen(**wish) == chosen


async def test_what_is_free_has_no_ceiling():
    """An SDK sends its default headers with every call, lists and files included."""
    world = World({"one": (dep("a/m", None),)}, {"max_cost_usd": 0.001})
    world.kit.pipeline.catalog.default_provider = "a"

    delivered = await world.kit.call(method="GET", path="/v1/files", headers={"x-hookline-max-cost-usd": "0.001"})

    assert delivered.status == 200


async def test_a_cost_that_nobody_meets_is_a_400_with_figures_also_for_a_lone_deployment():
    world = World({"one": (dep("b/medium"),)})

    delivered = await world.ask(model="one", max_tokens=1000, max_cost=0.001)

    message = delivered.json()["error"]["message"]
    assert delivered.status == 400
    assert message.startswith('no deployment of "one" can take this call: b/medium may cost 0.003')
    assert message.endswith("USD, 0.001 allowed")

    delivered = await world.ask(model="one", max_cost=0.001)
    assert "USD with an answer of 4096 tokens, 0.001 allowed" in delivered.json()["error"]["message"]


async def test_a_worst_case_is_made_true_where_the_request_sets_no_limit():
    world = World({"auto": SIZES}, {"assumed_output_tokens": 200})

    delivered = await world.ask(max_cost=0.0002)

    [(_, attempt)] = world.sent
    assert attempt.output_cap == 200
    assert delivered.headers["x-hookline-output-capped"] == "200"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"price": None}, "has no known price"),
        ({}, 'has no bound of its cost for "image_url"'),
        ({"context_tokens": 1_000_000}, "may cost 1."),
    ],
)
async def test_what_nothing_bounds_is_left_out_by_a_cost_ceiling(facts, reason):
    world = World({"one": (dep("a/m", **facts),)})
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}

    delivered = await world.ask(image, model="one", max_cost=0.5)

    assert delivered.status == 400
    assert f"a/m {reason}" in delivered.json()["error"]["message"]


async def test_operators_ceilings_hold_whatever_the_client_wishes():
    world = World({"auto": SIZES}, {"max_cost_per_1k_usd": 0.001, "prefer_provider": "c"})

    assert await world.chosen(max_cost={"per_1k_usd": 100}, prefer_provider="c") == "a/small"


# Places


EU = {"tenant": "acme", "regions": ["eu"]}
PLACES = (dep("a/us", region="us"), dep("b/eu", region="eu", tags=frozenset({"hipaa"})), dep("c/nowhere"))


async def test_a_tenants_calls_stay_in_its_region():
    world = World({"auto": PLACES}, {"places": [EU]})
    acme = Principal(tenant="acme")
    world.play("b", FAILS)

    assert await world.chosen() == "a/us"
    delivered = await world.ask(principal=acme)

    assert delivered.status >= 500
    assert Counter(attempt.deployment.id for _, attempt in world.sent) == {"a/us": 1, "b/eu": 1}


async def test_a_place_holds_for_a_lone_deployment_and_for_calls_without_a_model():
    world = World({"one": PLACES[:1]}, {"places": [{"regions": ["eu"]}]})
    world.kit.pipeline.catalog.default_provider = "a"

    delivered = await world.ask(model="one")
    assert delivered.status == 400
    assert 'a/us is in region "us", eu demanded' in delivered.json()["error"]["message"]

    delivered = await world.kit.call(None, method="GET", path="/v1/files")
    assert delivered.status == 400
    assert "is in no known region, eu demanded" in delivered.json()["error"]["message"]


async def test_a_model_may_add_places_and_drop_none():
    everywhere = model_selection.SelectionOptions(places=[{"regions": ["eu"]}])
    own = model_selection.SelectionOptions(places=[{"tags": ["hipaa"]}])

    assert len(Policy(own, everywhere.places).places) == 2
    assert len(Policy(everywhere, everywhere.places).places) == 1


async def test_a_hosted_tool_without_a_price_has_no_bound():
    world = World({"one": (dep("a/m", context_tokens=1_000),)})

    delivered = await world.ask(model="one", max_cost=9.0, web_search_options={})

    assert delivered.status == 400
    assert 'a/m has no bound of its cost for "web_search_options"' in delivered.json()["error"]["message"]


async def test_places_by_tag_of_the_key_and_of_the_call_demand_tags_of_the_deployment():
    tagger = make_plugin("tagger", prepare=lambda call: call.tags.append("phi"))
    demands = {"places": [{"tag": "phi", "tags": ["hipaa"]}]}

    assert await World({"auto": PLACES}, demands).chosen() == "a/us"
    assert await World({"auto": PLACES}, demands, principal=Principal(tags=("phi",))).chosen() == "b/eu"
    assert await World({"auto": PLACES}, demands, plugins=[tagger]).chosen() == "b/eu"


# Names


MODELS = {"gpt-4o": (dep("a/gpt-4o"),), "claude": (dep("b/claude"),), "mini": (dep("c/mini"),)}
MAPPINGS = {
    "mappings": [
        {"model": "gpt-4o", "tenant": "acme", "tag": "trial", "to": "mini"},
        {"model": "gpt-4o", "tenant": "acme", "to": "claude"},
        {"model": "gpt-4o", "key": "ci", "to": "mini"},
        {"model": "mini", "user": "ann", "to": "gpt-4o"},
        {"model": "gpt*", "tenant": "globex", "to": "claude"},
    ]
}


@pytest.mark.parametrize(
    ("principal", "model", "chosen"),
    [
        (Principal(), "gpt-4o", "a/gpt-4o"),
        (Principal(tenant="acme"), "gpt-4o", "b/claude"),
        (Principal(tenant="acme"), "best", "b/claude"),
        (Principal(tenant="acme", tags=("trial",)), "gpt-4o", "c/mini"),
        (Principal(tags=("trial",)), "gpt-4o", "a/gpt-4o"),
        (Principal(key_name="ci"), "gpt-4o", "c/mini"),
        (Principal(key_id="ci"), "gpt-4o", "c/mini"),
        (Principal(user="ann"), "mini", "a/gpt-4o"),
        (Principal(tenant="acme"), "mini", "c/mini"),
        (Principal(tenant="globex"), "gpt-4o", "b/claude"),
        (Principal(tenant="globex"), "mini", "c/mini"),
    ],
)
async def test_a_name_means_something_else_for_some(principal, model, chosen):
    world = World(MODELS, {**MAPPINGS, "aliases": {"best": "gpt-4o"}})

    delivered = await world.ask(model=model, principal=principal)

    [(call, _)] = world.sent
    assert delivered.headers["x-hookline-deployment"] == chosen
    assert call.model == call.payload["model"] == chosen.partition("/")[2]


async def test_an_alias_of_models_is_mapped_like_its_model():
    world = World({**MODELS, "4o": MODELS["gpt-4o"]}, MAPPINGS, settings={"aliases": {"4o": "gpt-4o"}})

    assert await world.chosen(model="4o", principal=Principal(tenant="acme")) == "b/claude"


async def test_a_mapping_may_name_its_model_by_an_alias():
    mappings = [{"model": "best", "tenant": "acme", "to": "claude"}]
    world = World(MODELS, {"mappings": mappings, "aliases": {"best": "gpt-4o"}})

    assert await world.chosen(model="gpt-4o", principal=Principal(tenant="acme")) == "b/claude"


async def test_nobody_gains_a_model_by_a_mapping():
    """The key's globs are asked for the model that is used, not for the name that was sent."""
    world = World(MODELS, MAPPINGS)

    delivered = await world.ask(model="gpt-4o", principal=Principal(tenant="acme", models=("gpt-4o",)))
    assert (delivered.status, delivered.json()["error"]["code"]) == (403, "model_not_allowed")

    assert await world.chosen(model="gpt-4o", principal=Principal(tenant="acme", models=("claude",))) == "b/claude"


# Order


async def test_priorities_are_tiers_and_load_spills_over():
    tiers = (dep("a/x", priority=1), dep("b/y"), dep("c/z"))
    world = World({"auto": tiers}, {"strategy": "round_robin"})

    assert [await world.chosen() for _ in range(4)] == ["b/y", "c/z", "b/y", "c/z"]
    world.play("b", FAILS)
    world.play("c", FAILS)
    assert await world.chosen() == "a/x"


async def test_what_is_above_a_tiers_own_limits_spills_over():
    clock = FakeClock()
    tiers = (dep("a/reserved", limits=Limits(requests_per_minute=2)), dep("b/on-demand", priority=1))
    world = World(
        {"auto": tiers}, plugins=[rate_limit.Plugin], clock=clock, stores=Stores(MemoryLimits(clock), None, None)
    )

    seen = [await world.chosen() for _ in range(4)]
    clock.advance(70.0)
    seen.append(await world.chosen())

    assert seen == ["a/reserved", "a/reserved", "b/on-demand", "b/on-demand", "a/reserved"]


async def test_each_model_has_turns_of_its_own():
    world = World({"auto": SIZES[:2], "other": SIZES[:2]}, {"strategy": "round_robin"})

    seen = [await world.chosen(model=model) for model in ("auto", "other", "auto", "other")]

    assert seen == ["a/small", "a/small", "b/medium", "b/medium"]


async def test_least_in_flight_goes_round_a_busy_one():
    world = World({"auto": SIZES[:2]}, {"strategy": "least_in_flight"})
    world.kit.plugin(model_selection.Plugin)._loads.get("a/small", 10.0).in_flight = 1

    assert {await world.chosen() for _ in range(10)} == {"b/medium"}


async def test_in_flight_ends_with_the_attempt_in_every_way():
    world = World({"auto": SIZES[:2]}, {"strategy": "least_in_flight"})
    loads = world.kit.plugin(model_selection.Plugin)._loads
    world.play("a", *[FAILS, lambda: stream(b'data: {"a":1}\n\n', b"data: [DONE]\n\n")] * 5)
    for _ in range(10):
        await world.ask(stream=True)
        await world.ask()

    assert [loads.find(id).in_flight for id in ("a/small", "b/medium")] == [0, 0]


@pytest.mark.parametrize(
    ("sticky_by", "one", "same"),
    [
        (
            "conversation",
            {"headers": {"x-hookline-conversation": "c1"}},
            {"headers": {"x-hookline-conversation": "c1"}},
        ),
        ("conversation", {"prompt_cache_key": "c1"}, {"prompt_cache_key": "c1"}),
        ("user", {"user": "ann"}, {"user": "ann"}),
    ],
)
async def test_sticky_calls_stay_together(sticky_by, one, same):
    world = World({"auto": SIZES}, {"strategy": "sticky", "sticky_by": sticky_by})

    first = await world.chosen({"role": "user", "content": "one"}, **one)
    others = [await world.chosen({"role": "user", "content": str(n)}, **same) for n in range(8)]

    assert set(others) == {first}


async def test_a_conversation_without_a_name_is_known_by_its_beginning():
    world = World({"auto": SIZES}, {"strategy": "sticky"})
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    seen = [await world.chosen(*talk)]
    for n in range(6):
        talk += [{"role": "assistant", "content": f"a{n}"}, {"role": "user", "content": f"u{n}"}]
        seen.append(await world.chosen(*talk))

    others = {await world.chosen(talk[0], {"role": "user", "content": f"Hello {n}."}) for n in range(20)}

    assert len(set(seen)) == 1
    assert len(others) == 3


async def test_sticky_users_and_keys_are_spread():
    world = World({"auto": SIZES}, {"strategy": "sticky", "sticky_by": "key"})

    seen = {key: {await world.chosen(principal=Principal(key_id=key)) for _ in range(3)} for key in map(str, range(20))}

    assert all(len(found) == 1 for found in seen.values())
    assert len(set.union(*seen.values())) == 3


@pytest.mark.parametrize("strategy", get_args(Strategy))
async def test_weight_0_is_only_for_when_others_fail(strategy):
    """Whatever the strategy, the tier, the price and the wishes: who takes a deployment out means it."""
    out, last = dep("a/out", CHEAP, weight=0.0), dep("b/last", DEAR, priority=1)
    world = World({"auto": [out, last], "left": [out]}, {"strategy": strategy})

    seen = {await world.chosen(headers={"x-hookline-prefer-provider": "a"}) for _ in range(8)}
    world.play("b", FAILS)

    assert seen == {"b/last"}
    assert await world.chosen() == "a/out"
    assert await world.chosen(model="left") == "a/out"


# Limits that upstreams told of


USED_UP = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}


def told(**headers: str) -> Reply:
    return answer(**headers)


async def test_a_deployment_that_said_it_is_used_up_is_left_alone_until_its_reset():
    clock = FakeClock()
    world = World({"auto": SIZES[:2]}, clock=clock)
    world.play("a", told(**USED_UP))

    seen = [await world.chosen() for _ in range(5)]
    clock.advance(20.0)
    seen.append(await world.chosen())

    assert seen == ["a/small", *["b/medium"] * 4, "a/small"]


async def test_the_log_tells_why_a_call_did_not_go_where_it_goes_as_a_rule():
    world = World({"auto": SIZES[:2], "seeing": [dep("a/blind", capabilities=frozenset()), dep("b/seeing")]})
    world.play("a", told(**USED_UP))

    await world.ask()
    await world.ask()
    await world.ask(headers={"x-hookline-prefer-provider": "b"})
    await world.ask(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
        model="seeing",
    )

    reasons = [call.attempts[0].target.reason for call, _ in world.sent]
    assert reasons[:3] == [
        "listed", "listed; limits used up: a/small", "listed; limits used up: a/small; the provider that the request prefers",
    ]  # fmt: skip
    assert world.sent[-1][0].slots[SKIPPED] == [("a/blind", "lacks vision")]


async def test_a_stream_tells_by_its_head():
    world = World({"auto": SIZES[:2]})

    script = stream(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', b"data: [DONE]\n\n")
    script.headers.update(USED_UP)

    world.play("a", script)

    assert await world.chosen(stream=True) == "a/small"
    assert await world.chosen() == "b/medium"


async def test_where_all_are_used_up_the_answer_is_a_429_with_the_earliest_reset():
    world = World({"auto": SIZES[:2]})
    world.play("a", told(**USED_UP))
    world.play("b", told(**{**USED_UP, "x-ratelimit-reset-requests": "7s"}))
    await world.ask()
    await world.ask()

    delivered = await world.ask()

    assert (delivered.status, delivered.headers["retry-after"]) == (429, "7")
    assert len(world.sent) == 2


async def test_a_lone_deployment_is_asked_whatever_it_told():
    world = World({"one": SIZES[:1]})
    world.play("a", told(**USED_UP))

    assert [await world.chosen(model="one") for _ in range(3)] == ["a/small"] * 3


# Budgets


class Purse:
    """A budget plugin that only knows a number."""

    left: float | None = 1.0
    asked = 0

    def __init__(self, options, host) -> None:
        host.offers[BUDGET_LEFT] = self.find_left

    async def find_left(self, principal):
        Purse.asked += 1
        if Purse.left is None:
            raise Unavailable("the store is away")
        return Purse.left


@pytest.mark.parametrize(("left", "chosen"), [(1.0, "c/large"), (0.2, "c/large"), (0.19, "a/small"), (None, "c/large")])
async def test_a_low_budget_takes_the_cheapest_whatever_the_class(left, chosen):
    Purse.left = left
    world = World(
        {"auto": SIZES}, {"complexity": CLASSES, "cheapest_below": 0.2, "prefer_provider": "c"}, plugins=[Purse]
    )

    assert await world.chosen(HARD) == chosen


async def test_what_is_left_is_asked_only_where_there_is_a_choice():
    Purse.left, Purse.asked = 0.5, 0
    world = World({"auto": SIZES, "one": SIZES[:1]}, {"cheapest_below": 0.2}, plugins=[Purse])

    for model in ("one", "auto", "one", "auto"):
        await world.ask(model=model)

    assert Purse.asked == 2


async def test_without_a_budget_plugin_it_is_refused_at_start():
    world = World({"auto": SIZES}, {"cheapest_below": 0.2})

    with pytest.raises(StartupError, match='cheapest_below needs "budget" in \\[chain\\] plugins'):
        await world.kit.chain.start()


# Refused at start


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "fastest"}, "'round_robin', 'least_in_flight', 'lowest_latency', 'cheapest' or 'sticky'"),
        ({"complexity": {"hard": ["a/small"]}}, "'simple', 'medium' or 'complex'"),
        ({"prefer_provider": "aa"}, 'provider "aa" is not configured; did you mean "a"?'),
        ({"aliases": {"x": "autp"}}, 'model "autp" does not exist; did you mean "auto"?'),
        ({"mappings": [{"model": "auto", "tenant": "t", "to": "autp"}]}, 'model "autp" does not exist'),
        ({"mappings": [{"model": "auto", "to": "auto"}]}, "for everyone is an alias"),
        ({"places": [{"tenant": "t"}]}, "it demands nothing"),
        ({"places": [{"regions": ["ue"]}]}, 'no deployment or provider has the region "ue"; there is eu'),
        ({"places": [{"tags": ["x"]}]}, 'no deployment or provider has the tag "x"'),
        ({"cheapest_below": 2}, "less than or equal to 1"),
    ],
)
def test_a_wrong_option_is_refused_with_the_right_names(options, told):
    with pytest.raises(StartupError) as raised:
        World({"auto": SIZES}, options, settings={"places": {"regions": ["eu"], "tags": ["hipaa"]}})

    assert told in str(raised.value)


# Explained, cached


async def test_the_notes_say_why_each_was_kept_left_out_or_ranked(sizes):
    world = sizes()
    call = world.kit.make_call({"model": "auto", "messages": [EASY], "max_cost": {"per_1k_usd": 0.003}})
    call.is_explained = True

    await world.kit.run(call)

    assert [(note.verdict, note.text) for note in call.notes if note.plugin == "model_selection"] == [
        ("complexity", "simple: simple: score 0"),
        ("left out", "c/large: costs up to 0.02 USD per 1,000 tokens, 0.003 allowed"),
        ("ranked", "1. a/small: strategy cheapest"),
        ("ranked", "2. b/medium: strategy cheapest, meant for requests 1 class higher"),
    ]


async def test_a_lone_deployment_is_explained_too():
    world = World({"one": SIZES[:1]})
    call = world.kit.make_call({"model": "one", "messages": [EASY]})
    call.is_explained = True

    await world.kit.run(call)

    assert ("kept", "a/small: the only one that may serve") in [(note.verdict, note.text) for note in call.notes]


async def test_a_dry_run_takes_no_turn():
    world = World({"auto": SIZES[:2]}, {"strategy": "round_robin"})
    for _ in range(3):
        await world.kit.run(world.kit.make_call({"model": "auto", "messages": [EASY]}, is_dry_run=True))

    assert await world.chosen() == "a/small"
    assert world.kit.plugin(model_selection.Plugin)._loads.find("a/small").in_flight == 0


async def test_an_answer_for_one_class_is_not_the_cached_answer_for_another():
    clock = FakeClock()
    world = World(
        {"auto": SIZES}, {"complexity": CLASSES}, plugins=[cache.Plugin], clock=clock,
        stores=Stores(None, MemoryReplies(clock, max_bytes=1 << 20), None),
    )  # fmt: skip

    seen = [
        (await world.ask(temperature=0, complexity=asked)).headers.get("x-hookline-cache")
        for asked in ("simple", "complex", "simple", "complex")
    ]

    assert seen == ["miss", "miss", "hit", "hit"]


def test_deployments_are_compared_by_what_they_declare():
    assert replace(SIZES[0], region="eu") != SIZES[0]
