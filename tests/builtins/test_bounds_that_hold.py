"""What a hostile or careless request must not get past: each of these was possible once."""

from __future__ import annotations

from typing import Any

import pytest

from hookline import BadRequest, Deployment, InsufficientQuota, Reply, Skip, Target, bound_input, is_free
from hookline.attempt_errors import no_target_error
from hookline.builtins.budget import find_unbounded
from hookline.builtins.cache.recording import has_failed, is_answer
from hookline.builtins.metrics import ModelLabels
from hookline.money import Price
from hookline.prices import PriceTable
from hookline.surfaces.json_body import parse_object

PRICED = Deployment("up/m", "up", "m", price=Price(1, 1))


@pytest.mark.parametrize(
    "odd", [{"max_tokens": -1}, {"max_tokens": "100000"}, {"max_tokens": 1e5}, {"n": "100"}, {"n": 100.0}, {"n": -5}]
)
def test_a_hard_budget_refuses_a_count_that_another_reader_may_take_for_more(make_call, odd: dict[str, Any]):
    call = make_call({"model": "m", "max_completion_tokens": 1, **odd})

    assert find_unbounded(call, PRICED, bound_input(call)) is not None


def test_of_two_completion_limits_the_larger_bounds(make_call):
    assert (
        make_call({"model": "m", "max_completion_tokens": 1, "max_tokens": 100_000}).chat.max_output_tokens == 100_000
    )


def test_odd_tools_are_the_providers_to_refuse(make_call):
    call = make_call({"model": "m", "tools": 5})

    assert find_unbounded(call, PRICED, bound_input(call)) is None


def test_a_reference_in_a_tools_output_is_seen(make_call):
    part = {"type": "input_image", "image_url": "https://example.com/x.png"}
    item = {"type": "function_call_output", "call_id": "c", "output": [part]}

    assert bound_input(make_call({"model": "m", "input": [item]}, path="/v1/responses")).open_field == "image_url"


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":"c1","choi', b'{"error":{"message":"boom"}}'])
def test_what_is_no_answer_is_not_cached(body: bytes):
    assert not is_answer(Reply(200, {"content-type": "application/json"}, body))


def test_a_choice_that_ended_by_an_error_is_not_cached():
    assert has_failed(b'{"choices":[{"index":0,"finish_reason":"error"}]}')


def test_a_huge_model_name_is_no_label():
    assert ModelLabels({}).label("x" * 1_000_000, is_priced=False) == "other"


def test_one_target_too_dear_and_one_without_price_is_a_quota():
    skips = [(Target(PRICED), Skip("", InsufficientQuota(""))), (Target(PRICED), Skip("", BadRequest("")))]

    assert isinstance(no_target_error(skips), InsufficientQuota)


@pytest.mark.parametrize("name", ["MODEL", "Max_Tokens", "max_to\u212aens", "max_token\u017f"])
def test_a_decisive_member_in_another_case_is_refused(name: str):
    """Go's encoding/json takes them for the member, and the last one counts."""
    with pytest.raises(BadRequest):
        parse_object(f'{{"model":"m","{name}":"x"}}'.encode())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/vector_stores/vs/search", "/v1/vector_stores/vs/%73earch", "/v1/vector_stores/vs/SEARCH", "/v1/vector_stores/vs%2fsearch",
        "/v1/vector_stores/vs/search;a=b", "/v1/vector_stores/vs/search%20", "/v1/vector_stores/vs/search/", "/v1/vector_stores/search",
    ],
)  # fmt: skip
def test_no_spelling_of_a_search_is_free(path: str):
    assert not is_free("POST", path)


@pytest.mark.parametrize(
    "rest", ["", "/vs", "/vs/files", "/vs/files/f", "/vs/file_batches", "/vs/file_batches/b/cancel"]
)
def test_storing_in_a_vector_store_is_free(rest: str):
    assert is_free("POST", f"/v1/vector_stores{rest}")


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/%65dits", "/v1/Images/edits", "/v1/images/edits/"])
def test_no_spelling_of_a_path_has_the_price_of_another_pattern(path: str):
    cheap, dear = Price(call_nanousd=1), Price(call_nanousd=2)
    prices = PriceTable({"POST /v1/images/*": cheap, "POST /v1/images/edits": dear})

    assert prices.find_route("POST", path) == dear
