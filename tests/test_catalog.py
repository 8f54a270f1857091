from __future__ import annotations

from dataclasses import dataclass

import pytest

from hookline.catalog import NAME_MAX, UNKNOWN_NAMES_MAX, Catalog
from hookline.deployment import Deployment
from hookline.errors import BadRequest, Forbidden, NotFound
from hookline.money import Price
from hookline.principal import ANONYMOUS, Principal

GPT = (Deployment("openai/gpt-4o", "openai", "gpt-4o"), Deployment("azure/gpt-4o", "azure", "gpt-4o", Price(1)))


def test_a_deployment_by_key_is_one_for_each_key_of_its_provider() -> None:
    one, two = GPT[0].by_key(2)

    assert [(d.id, d.key_number, d.listed_id, d.model) for d in (one, two)] == [
        ("openai/gpt-4o#1", 0, "openai/gpt-4o", "gpt-4o"),
        ("openai/gpt-4o#2", 1, "openai/gpt-4o", "gpt-4o"),
    ]
    for alone in (GPT[0], Deployment("a/m", "a", "m", api_key="own"), Deployment("a/", "a", "")):
        assert alone.by_key(1 if alone is GPT[0] else 2) == (alone,)
        assert alone.listed_id == alone.id


@dataclass
class Request:
    method: str = "POST"
    path: str = "/v1/chat/completions"
    endpoint: str = "chat"
    principal: Principal = ANONYMOUS
    made_at: tuple[str, str] | None = None

    def find(self, slot):
        return self.made_at


def build(provider: str, model: str) -> Deployment:
    return Deployment(f"{provider}/{model}", provider, model)


def catalog(default: str | None = "openai", **kwargs) -> Catalog:
    return Catalog(
        {"gpt-4o": GPT, "best": GPT[:1], "demo/odd": GPT[1:]},
        providers=["openai", "azure", "demo"],
        default_provider=default,
        build=build,
        canonical_by_alias={"best": "gpt-4o"},
        **kwargs,
    )


def test_names_nobody_configured_have_a_deployment_for_each_key() -> None:
    names = catalog(count_keys={"openai": 2, "demo": 1}.get)

    assert [d.id for d in names.resolve("o9")] == ["openai/o9#1", "openai/o9#2"]
    assert [d.id for d in names.resolve("openai/o9")] == ["openai/o9#1", "openai/o9#2"]
    assert [d.id for d in names.resolve("demo/echo")] == ["demo/echo"]
    assert [d.id for d in names.resolve_without_model(Request(path="/v1/files", endpoint="relay"))] == ["openai/"]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("gpt-4o", ["openai/gpt-4o", "azure/gpt-4o"]),
        ("best", ["openai/gpt-4o"]),
        ("demo/odd", ["azure/gpt-4o"]),
        ("demo/echo", ["demo/echo"]),
        ("azure/a/b", ["azure/a/b"]),
        ("meta/llama", ["openai/meta/llama"]),
        ("GPT-4o", ["openai/GPT-4o"]),
        ("o9", ["openai/o9"]),
    ],
)
def test_resolves(name: str, ids: list[str]) -> None:
    names = catalog()

    assert [d.id for d in names.resolve(name)] == ids
    assert names.resolve(name) is names.resolve(name)


@pytest.mark.parametrize("name", ["", "demo/", "x" * (NAME_MAX + 1)])
def test_names_that_mean_nothing_are_not_found_even_with_a_default(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        catalog().resolve(name)

    assert len(caught.value.message) < 300


def test_not_found_names_close_matches_that_the_key_may_use() -> None:
    with pytest.raises(NotFound) as caught:
        catalog(default=None).resolve("gpt-4", Request())
    assert caught.value.to_object()["error"] == {
        "message": 'model "gpt-4" does not exist; did you mean "gpt-4o"?',
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }

    with pytest.raises(NotFound) as caught:
        catalog(default=None).resolve("gpt-4", Request(principal=Principal(models=("other",))))
    assert caught.value.message == 'model "gpt-4" does not exist'


def test_remembers_a_bounded_number_of_unknown_names() -> None:
    names = catalog()

    for number in range(UNKNOWN_NAMES_MAX * 2 + 5):
        assert names.resolve(f"m{number}")[0].model == f"m{number}"

    assert len(names._unknown) <= UNKNOWN_NAMES_MAX


@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
def test_a_call_that_needs_a_model_is_a_400_without_one(endpoint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        catalog().resolve_without_model(Request(endpoint=endpoint))

    assert caught.value.message == "you must provide a model parameter"


def test_other_calls_without_a_model_go_to_the_default_provider() -> None:
    files = Request("POST", "/v1/files", "relay")

    assert catalog().resolve_without_model(files) == (Deployment("openai/", "openai", ""),)
    with pytest.raises(NotFound, match="no provider is the default"):
        catalog(default=None).resolve_without_model(files)


def test_a_route_price_fills_in_where_a_deployment_has_none() -> None:
    names = catalog(find_route_price=lambda method, path: Price(call_nanousd=9) if path == "/v1/images" else None)

    both = names.resolve("gpt-4o", Request(path="/v1/images"))
    bare = names.resolve_without_model(Request(path="/v1/images", endpoint="relay"))

    assert [d.price for d in both] == [Price(call_nanousd=9), Price(1)]
    assert [d.price for d in bare] == [Price(call_nanousd=9)]
    assert names.resolve("gpt-4o", Request(path="/v1/other")) is GPT


@pytest.mark.parametrize(
    ("globs", "name", "is_allowed"),
    [
        (("*",), "anything", True),
        (("gpt-4o*",), "gpt-4o-mini", True),
        (("gpt-4o*",), "GPT-4o", False),
        (("gpt-4o*",), "openai/gpt-4o", False),
        (("gpt-4o",), "best", True),
        (("best",), "gpt-4o", False),
        (("demo/*", "o?"), "o3", True),
        ((), "gpt-4o", False),
    ],
)
def test_a_key_s_globs_decide(globs: tuple[str, ...], name: str, is_allowed: bool) -> None:
    names, principal = catalog(), Principal(models=globs, key_name="ci")

    assert names.is_allowed(principal, name) == is_allowed
    if is_allowed:
        names.check_allowed(principal, name, Request())
    else:
        with pytest.raises(Forbidden, match='key "ci" may not use model'):
            names.check_allowed(principal, name, Request())


@pytest.mark.parametrize(
    "scopes",
    [{"tenant_models": {"acme": ["gpt-*"]}}, {"user_models": {"ann": ["gpt-*"]}}, {"global_models": ["gpt-*"]}],
)
def test_tenant_user_and_everyone_narrow_what_a_key_may_use(scopes: dict) -> None:
    names = catalog(**scopes)
    ann = Principal(tenant="acme", user="ann")

    assert names.is_allowed(ann, "gpt-4o")
    assert not names.is_allowed(ann, "demo/echo")
    with pytest.raises(Forbidden):
        names.check_allowed(ann, None, Request("POST", "/v1/batches", "relay"))


@pytest.mark.parametrize(
    ("method", "path", "is_free"),
    [
        ("GET", "/v1/batches", True),
        ("HEAD", "/v1/x", True),
        ("DELETE", "/v1/responses/r1", True),
        ("POST", "/v1/files", True),
        ("POST", "/v1/uploads/u1/parts", True),
        ("POST", "/v1/filesystem", False),
        ("POST", "/v1/batches", False),
        ("PUT", "/v1/files", False),
        ("POST", "/v1/audio/speech", False),
    ],
)
def test_a_limited_key_without_a_model_may_only_do_what_costs_nothing(method: str, path: str, is_free: bool) -> None:
    names, call = catalog(), Request(method, path, "relay")

    names.check_allowed(Principal(), None, call)
    if is_free:
        names.check_allowed(Principal(models=("gpt-*",)), None, call)
    else:
        with pytest.raises(Forbidden, match="names none"):
            names.check_allowed(Principal(models=("gpt-*",)), None, call)


def test_what_one_key_may_use_is_not_remembered_for_another():
    names = catalog()
    allowed, other = Principal(key_id="a", models=("gpt-*",)), Principal(key_id="b", models=("o3",))

    for _ in range(2):
        names.check_allowed(allowed, "gpt-4o", Request())
        with pytest.raises(Forbidden):
            names.check_allowed(other, "gpt-4o", Request())
