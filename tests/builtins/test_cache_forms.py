"""One entry, two forms: a stream told as a plain reply, a plain reply told as a stream, and what is refused because it can't be told exactly."""

from __future__ import annotations

import copy

import orjson
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from hookline import Inexact, disassemble
from hookline.builtins.cache.assemble import assemble
from hookline.builtins.cache.event_stream import (
    DONE,
    chunks_of,
    event,
    with_joined_words,
    with_usage,
    without_usage,
)

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
LOGPROB = {"token": "ho", "logprob": -0.1, "bytes": [104, 111], "top_logprobs": []}


def chat(*messages, logprobs=None, finish="stop", **top):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m-2026",
        **top,
        "choices": [
            {"index": i, "message": {"role": "assistant", **m}, "logprobs": logprobs, "finish_reason": finish}
            for i, m in enumerate(messages)
        ],
        "usage": USAGE,
    }


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CUSTOM = {"id": "call_2", "type": "custom", "custom": {"name": "g", "input": "x y"}}
CITED = {"url": "u", "title": "t", "start_index": 0, "end_index": 1}
CHATS = {
    "text": chat({"content": "hello", "refusal": None}),
    "empty": chat({"content": ""}),
    "unicode": chat({"content": "Grüße 👋\n\ndata: [DONE]\n\n"}),
    "several": chat({"content": "one"}, {"content": "two"}, {"content": "three"}),
    "refusal": chat({"content": None, "refusal": "I can't."}),
    "tools": chat({"content": None, "tool_calls": [CALL, CUSTOM]}, finish="tool_calls"),
    "text and tools": chat({"content": "let me see", "tool_calls": [CALL]}, finish="tool_calls"),
    "logprobs": chat({"content": "hoho"}, logprobs={"content": [LOGPROB, LOGPROB], "refusal": None}),
    "reasoning": chat({"content": "4", "reasoning_content": "2 + 2"}),
    "openrouter": chat({"content": "4", "reasoning": "2 + 2"}, provider="x"),
    "thinking": chat({"content": "4", "thinking_blocks": [{"type": "thinking", "thinking": "2+2", "signature": "s"}]}),
    "annotations": chat({"content": "4", "annotations": [{"type": "url_citation", "url_citation": CITED}]}),
    "vendor": chat({"content": "4"}, system_fingerprint="fp", service_tier="default", timings={"ms": 1}),
}


@pytest.mark.parametrize("reply", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("piece_chars", [None, 3])
def test_a_chat_reply_survives_being_told_as_a_stream(reply, piece_chars):
    events = disassemble("chat", orjson.dumps(reply), wants_usage=True, piece_chars=piece_chars)

    assert orjson.loads(assemble("chat", b"".join(events), None)) == reply
    assert events[-1] == DONE


@pytest.mark.parametrize(
    "name", [name for name in CHATS if name != "tools"]
)  # the SDK knows no custom calls in streams
def test_the_sdk_reads_the_made_stream_as_the_reply(name):
    reply = CHATS[name]
    state = ChatCompletionStreamState()
    for data in chunks_of(b"".join(disassemble("chat", orjson.dumps(reply), wants_usage=True))):
        state.handle_chunk(ChatCompletionChunk.model_validate(data, strict=False))

    told, meant = state.get_final_completion(), ChatCompletion.model_validate(reply)

    assert [c.finish_reason for c in told.choices] == [c.finish_reason for c in meant.choices]
    for mine, other in zip(told.choices, meant.choices, strict=True):
        assert (mine.message.content or None) == (other.message.content or None)
        assert mine.message.refusal == other.message.refusal
        calls = [(c.id, c.function.name, c.function.arguments) for c in mine.message.tool_calls or ()]
        assert calls == [(c.id, c.function.name, c.function.arguments) for c in other.message.tool_calls or ()]
    assert told.usage.total_tokens == 15


def test_usage_is_told_only_where_it_is_asked_for():
    body = orjson.dumps(CHATS["text"])

    assert b"usage" not in b"".join(disassemble("chat", body, wants_usage=False))
    assert b"usage" in b"".join(disassemble("chat", body, wants_usage=True))


def chunk(delta, *, index=0, finish=None, **beside):
    choice = {"index": index, "delta": delta, "finish_reason": finish, **beside}
    return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


USAGE_EVENT = event(
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
)
STREAM = [
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "hé"}),
    b": a comment\n\n",
    chunk({"content": "llo"}),
    chunk({}, finish="stop"),
]


def message(*chunks):
    return orjson.loads(assemble("chat", b"".join([*chunks, USAGE_EVENT, DONE]), None))["choices"][0]["message"]


def test_a_stream_is_told_as_a_plain_reply():
    told = orjson.loads(assemble("chat", b"".join([*STREAM, USAGE_EVENT, DONE]), None))

    assert told == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "héllo", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_line_ends_and_long_events_do_not_matter():
    events = b"".join([*STREAM, USAGE_EVENT, DONE])

    assert assemble("chat", events.replace(b"\n", b"\r\n"), None) == assemble("chat", events, None)


def test_calls_are_put_together_by_their_index():
    told = message(
        chunk({"role": "assistant", "content": None}),
        chunk(
            {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]}
        ),
        chunk(
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
        ),
        chunk(
            {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}, {"index": 1, "function": {"arguments": "1"}}]}
        ),
        chunk({}, finish="tool_calls"),
    )

    assert told["content"] is None
    assert told["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "1"}},
    ]


def test_a_usage_that_the_stream_kept_to_itself_is_told():
    told = orjson.loads(assemble("chat", b"".join([*STREAM, DONE]), USAGE))

    assert told["usage"] == USAGE


def said(delta: bytes, *, role: bytes = b"", after: bytes = b"") -> bytes:
    return b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{%b"content":"%b"},"finish_reason":null}]%b}\n\n' % (role, delta, after)  # fmt: skip


WORDS_END = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + DONE


@pytest.mark.parametrize(
    ("events", "content", "runs"),
    [
        ([said(b"one"), said(b" two"), said(b"")], "one two", 1),
        ([said(b"", role=b'"role":"assistant",'), said(b"a"), said(b"b")], "ab", 2),
        ([said(rb"\"q\" \\"), said(rb"\n\u00e9"), said("\u00fc".encode())], '"q" \\\n\u00e9\u00fc', 1),
        ([said(b"a"), b": ping\n\n", said(b"b"), said(b"c")], "abc", 2),
        ([said(b"a", after=b',"usage":null'), said(b"b", after=b',"usage":null'), said(b"c")], "abc", 2),
        ([said(b'a"},"logprobs":{"content":[1]},"x":{"y":"z'), said(b"b")], "ab", None),
        ([said(b'a","refusal":"no'), said(b"b")], "ab", None),
        ([said(b'a","content":"x'), said(b"b")], "xb", None),
        ([event({"choices": [{"index": i % 2, "delta": {"content": str(i)}, "finish_reason": None}]}) for i in range(40)], None, None),
    ],
)  # fmt: skip
def test_words_are_joined_before_they_are_read_and_say_the_same(events, content, runs):
    joined = with_joined_words(b"".join(events))

    told = orjson.loads(assemble("chat", b"".join(events) + WORDS_END, USAGE)) if content is not None else None

    if told is not None:
        assert told["choices"][0]["message"]["content"] == content
    if runs is not None:
        assert joined.count(b'"content"') == runs


def test_half_a_letter_is_no_text():
    with pytest.raises(Inexact):
        assemble("chat", said(rb"\ud83d") + said(rb"x\ude00") + WORDS_END, USAGE)


def test_an_answer_whose_provider_tells_no_usage_has_both_forms_and_none_of_them_does():
    told = orjson.loads(assemble("chat", b"".join([*STREAM, DONE]), None))

    assert "usage" not in told
    assert b"usage" not in b"".join(disassemble("chat", orjson.dumps(told), wants_usage=True))


def test_what_the_first_one_paid_is_not_told():
    paid = USAGE_EVENT.replace(b'"total_tokens":15', b'"total_tokens":15,"cost_usd":0.5')

    assert b"cost_usd" not in assemble("chat", b"".join([*STREAM, paid, DONE]), None)


AUDIO = [chunk({"audio": {"id": "a", "data": "AA=="}}), chunk({}, finish="stop"), USAGE_EVENT]


@pytest.mark.parametrize(
    "events",
    [
        [*STREAM[:-1], USAGE_EVENT, DONE],  # no finish_reason
        AUDIO,
        [chunk({"content": "a", "novel": "x"}), chunk({"novel": "y"}), chunk({}, finish="stop"), USAGE_EVENT],
        [chunk({"content": [{"type": "text"}]}), chunk({}, finish="stop"), USAGE_EVENT],
        [event([1])],
        [b"data: {}, {}\n\n", *STREAM, USAGE_EVENT, DONE],  # two in one are not two
        [event({"choices": [3]})],
        [event({"choices": {"a": 1}})],
        [b"data: {not json\n\n"],
        [],
    ],
)
def test_a_stream_that_cannot_be_told_exactly_is_refused(events):
    with pytest.raises(Inexact):
        assemble("chat", b"".join(events), None)


@pytest.mark.parametrize(
    "reply",
    [
        chat({"content": [{"type": "text", "text": "x"}]}),
        chat({"content": None, "audio": {"id": "a"}}),
        chat({"content": "x"}, finish=None),
        {"choices": []},
        {"choices": "x"},
        [1],
        3,
    ],
)
def test_a_reply_that_has_no_form_as_a_stream_is_refused(reply):
    with pytest.raises(Inexact):
        disassemble("chat", orjson.dumps(reply), wants_usage=False)


@pytest.mark.parametrize("endpoint", ["embeddings", "moderations"])
def test_what_has_one_form_only_is_refused(endpoint):
    with pytest.raises(Inexact):
        assemble(endpoint, b"data: {}\n\n", None)
    with pytest.raises(Inexact):
        disassemble(endpoint, b"{}", wants_usage=False)


def test_the_usage_event_is_taken_out_and_the_rest_stays():
    nulls = [block.replace(b'"model":"m"', b'"model":"m","usage":null') for block in STREAM]

    assert without_usage(b"".join([*STREAM, USAGE_EVENT, DONE])) == b"".join([*STREAM, DONE])
    spaced = [block.replace(b"}\n\n", b', "usage": null}\n\n') for block in STREAM]
    last = [block.replace(b"}\n\n", b',"usage":null}\n\n') for block in STREAM]

    assert b"usage" not in without_usage(b"".join([*nulls, USAGE_EVENT, DONE]))
    assert b"usage" not in without_usage(b"".join([*spaced, USAGE_EVENT, DONE]))
    assert without_usage(b"".join([*last, USAGE_EVENT, DONE])) == b"".join([*STREAM, DONE])


def test_the_usage_event_is_put_before_the_end():
    told = with_usage(b"".join([*STREAM, DONE]), USAGE)

    assert told == b"".join([*STREAM, USAGE_EVENT, DONE])
    with pytest.raises(Inexact):
        with_usage(b"".join([*STREAM, DONE]), None)


def completion(text, logprobs=None):
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": "stop"}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": USAGE,
    }


@pytest.mark.parametrize("logprobs", [None, {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]}])
@pytest.mark.parametrize("piece_chars", [None, 2])
def test_a_completion_survives(logprobs, piece_chars):
    reply = completion("hello", logprobs)

    events = disassemble("completions", orjson.dumps(reply), wants_usage=True, piece_chars=piece_chars)

    assert orjson.loads(assemble("completions", b"".join(events), None)) == reply
    read = [Completion.construct(**data) for data in chunks_of(b"".join(events))]
    assert "".join(c.choices[0].text for c in read if c.choices) == "hello"


TEXT = {
    "type": "output_text",
    "text": "hello",
    "annotations": [{"type": "file_path", "file_id": "f", "index": 0}],
    "logprobs": [],
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "m",
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [TEXT]},
        {
            "id": "msg_2",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "refusal", "refusal": "no"}],
        },
        {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"id": "ct_1", "type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "temperature": 0.0,
    "top_p": 1.0,
    "metadata": {},
    "usage": {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 3,
    },
}


@pytest.mark.parametrize("piece_chars", [None, 2])
def test_a_response_survives_and_its_events_are_those_of_the_sdk(piece_chars):
    events = b"".join(disassemble("responses", orjson.dumps(RESPONSE), wants_usage=False, piece_chars=piece_chars))

    told = [*chunks_of(events)]
    adapter = TypeAdapter(ResponseStreamEvent)
    assert [adapter.validate_python(data).type for data in told] == [data["type"] for data in told]
    assert [data["sequence_number"] for data in told] == [*range(len(told))]
    assert orjson.loads(assemble("responses", events, None)) == RESPONSE


@pytest.mark.parametrize("kind", ["image_generation_call", "mcp_call", "something_new"])
def test_a_response_with_items_of_unknown_events_is_refused(kind):
    reply = copy.deepcopy(RESPONSE)
    reply["output"].append({"id": "x", "type": kind, "status": "completed"})

    with pytest.raises(Inexact):
        disassemble("responses", orjson.dumps(reply), wants_usage=False)


def test_a_response_whose_end_does_not_hold_its_items_is_refused():
    events = b"".join(disassemble("responses", orjson.dumps(RESPONSE), wants_usage=False))
    hollow = events.replace(orjson.dumps(RESPONSE["output"]), b"[]")

    with pytest.raises(Inexact):
        assemble("responses", hollow, None)
