"""Legacy completions served by chat: requests out, replies and streams back, judged by the `openai` package's types."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.completion_create_params import CompletionCreateParamsBase

from hookline.providers.completions_as_chat import (
    MAX_PROMPTS,
    REFUSED,
    CompletionsStream,
    from_chat,
    sum_usage,
    to_chat,
)
from hookline.providers.untranslatable import Untranslatable


def chat_reply(*texts: str | None, number: int = 1, reason: str = "stop", **fields: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        for index, text in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number,
        "prompt_tokens_details": {"cached_tokens": number}, "completion_tokens_details": None,
    }  # fmt: skip
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 5,
        "model": "real",
        "choices": choices,
        "usage": usage,
        **fields,
    }


class TestToChat:
    def test_a_prompt_is_a_user_message_and_the_rest_goes_on(self):
        payload = {
            "model": "gpt-4o",
            "prompt": "Say hi",
            "max_tokens": 5,
            "temperature": 0,
            "n": 2,
            "stop": ["x"],
            "stream": True,
            "user": "u",
            "seed": None,
            "top_k": 3,
        }

        assert to_chat(payload) == [
            {
                "model": "gpt-4o",
                "temperature": 0,
                "n": 2,
                "stop": ["x"],
                "stream": True,
                "user": "u",
                "top_k": 3,
                "max_tokens": 5,
                "messages": [{"role": "user", "content": "Say hi"}],
            }
        ]

    def test_each_prompt_is_a_call_of_its_own(self):
        assert [chat["messages"][0]["content"] for chat in to_chat({"model": "m", "prompt": ["a", "", "c"]})] == [
            "a",
            "",
            "c",
        ]

    def test_the_limit_has_the_name_the_answering_model_knows(self):
        payload = {"model": "alias", "prompt": "x", "max_tokens": 5}

        assert to_chat(payload)[0]["max_tokens"] == 5
        assert to_chat(payload, upstream_model="o3-mini")[0]["max_completion_tokens"] == 5

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": None}, "prompt"),
            ({"prompt": 3}, "prompt"),
            ({"prompt": {}}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": ["x"] * (MAX_PROMPTS + 1)}, "prompt"),
            ({"prompt": [1, 2]}, "prompt"),
            ({"prompt": [[1, 2]]}, "prompt"),
            ({"prompt": ["x", None]}, "prompt[1]"),
            ({"echo": True}, "echo"),
            ({"suffix": "end"}, "suffix"),
            ({"logprobs": 0}, "logprobs"),
            ({"logprobs": 5}, "logprobs"),
            ({"best_of": 3}, "best_of"),
            ({"best_of": 3, "n": 2}, "best_of"),
            ({"n": "2"}, "n"),
            ({"messages": []}, "messages"),
            ({"tools": [{}]}, "tools"),
            ({"max_tokens": -1}, "max_tokens"),
        ],
    )
    def test_what_a_chat_model_cannot_do_is_named(self, fields, param):
        with pytest.raises(Untranslatable) as caught:
            to_chat({"model": "m", "prompt": "x", **fields})

        assert caught.value.param == param
        assert param in str(caught.value)

    def test_values_that_ask_for_nothing_are_accepted_and_not_sent(self):
        for field, row in REFUSED.items():
            for value in (None, *row.harmless):
                assert to_chat({"model": "m", "prompt": "x", field: value}) == to_chat({"model": "m", "prompt": "x"})
        assert to_chat({"model": "m", "prompt": "x", "n": 2, "best_of": 2}) == to_chat(
            {"model": "m", "prompt": "x", "n": 2}
        )

    def test_every_field_of_the_sdk_that_is_not_refused_exists_in_chat_too(self):
        same_meaning = {
            "model",
            "frequency_penalty",
            "logit_bias",
            "n",
            "presence_penalty",
            "seed",
            "stop",
            "stream_options",
            "temperature",
            "top_p",
            "user",
        }
        handled = {"prompt", "best_of", "max_tokens"} | REFUSED.keys()

        assert CompletionCreateParamsBase.__annotations__.keys() - handled == same_meaning


class TestFromChat:
    def test_one_reply_is_a_legacy_object_with_its_text_on_top(self):
        legacy = from_chat([chat_reply("hello", system_fingerprint="fp")], model="asked")

        parsed = Completion.model_validate(legacy)
        assert (parsed.id, parsed.object, parsed.created, parsed.model, parsed.system_fingerprint) == (
            "chatcmpl-1",
            "text_completion",
            5,
            "asked",
            "fp",
        )
        assert [choice.model_dump() for choice in parsed.choices] == [
            {"text": "hello", "index": 0, "logprobs": None, "finish_reason": "stop"}
        ]
        assert (legacy["content"], parsed.usage.total_tokens) == ("hello", 11)

    def test_choices_are_numbered_over_prompts_and_n(self):
        parsed = Completion.model_validate(from_chat([chat_reply("a", "b"), chat_reply("c", "d", number=2)], model="m"))

        assert [(choice.index, choice.text) for choice in parsed.choices] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]

    def test_usage_is_the_sum_with_its_details(self):
        parsed = Completion.model_validate(from_chat([chat_reply("a"), chat_reply("b", number=2)], model="m"))

        assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (20, 3, 23)
        assert parsed.usage.prompt_tokens_details.cached_tokens == 3

    def test_usage_is_null_unless_every_reply_has_one(self):
        assert from_chat([chat_reply("a"), chat_reply("b", usage=None)], model="m")["usage"] is None

    @pytest.mark.parametrize(
        ("chat", "legacy"),
        [
            ("length", "length"),
            ("content_filter", "content_filter"),
            ("tool_calls", "stop"),
            (None, "stop"),
            ("eos", "stop"),
        ],
    )
    def test_finish_reasons_are_those_of_the_legacy_object(self, chat, legacy):
        assert from_chat([chat_reply(None, reason=chat)], model="m")["choices"][0]["finish_reason"] == legacy

    def test_a_refusal_is_the_text(self):
        reply = {"choices": [{"message": {"content": None, "refusal": "I won't."}}]}

        assert from_chat([reply], model="m")["content"] == "I won't."


class TestStream:
    def test_transcript(self):
        envelope = {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "real"}
        stream = CompletionsStream(model="asked", index_offset=2)
        chunks = [
            {
                **envelope,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
                "usage": None,
            },
            {**envelope, "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]},
            {**envelope, "choices": [{"index": 1, "delta": {"content": "yo"}, "finish_reason": None}]},
            {**envelope, "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]},
            {**envelope, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
            {**envelope, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        ]

        legacy = [out for chunk in chunks for out in stream.feed(chunk)]

        assert [Completion.construct(**chunk).model for chunk in legacy] == ["asked"] * 4
        assert [(c["index"], c["text"], c["finish_reason"]) for chunk in legacy for c in chunk["choices"]] == [
            (2, "he", None),
            (3, "yo", None),
            (2, "", "length"),
        ]
        assert [chunk["usage"]["total_tokens"] for chunk in legacy if "usage" in chunk] == [3]

    def test_an_error_passes_as_it_is(self):
        error = {"error": {"message": "gone"}}

        assert CompletionsStream(model="m").feed(error) == [error]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["index", "message", "delta", "content", "finish_reason", "refusal", "prompt_tokens"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "prompt", "max_tokens", "n", "stop", *REFUSED, "best_of"]), JSON))
def test_any_request_becomes_chats_or_a_named_error(payload):
    try:
        outcome: Any = to_chat(payload)
    except Untranslatable as refusal:
        outcome = refusal.param
    assert outcome


@given(st.lists(st.dictionaries(st.sampled_from(["id", "choices", "created", "system_fingerprint"]), JSON), max_size=3))
def test_replies_and_chunks_of_any_shape_stay_legacy_objects(replies):
    assert Completion.model_validate(from_chat(replies, model="m")).object == "text_completion"
    stream = CompletionsStream(model="m")
    assert all(out["object"] == "text_completion" for reply in replies for out in stream.feed(reply))


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON), max_size=3))
def test_usages_of_any_shape_have_a_sum(usages):
    assert isinstance(sum_usage(usages), dict)
