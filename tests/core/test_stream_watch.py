"""The watch on a relayed stream: it changes no byte, wherever the stream is cut, and knows its end, its usage and its errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookline import Usage
from hookline.openai_wire import UNREAD_CALLS
from hookline.stream_watch import EVENT_BYTES_MAX, HELD_BYTES_MAX, StreamWatch
from hookline.transport.sse import SseSplitter, parse_event, serialize_event

DONE = b"data: [DONE]\n\n"
COUNTED = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
RESPONSE_USAGE = {"input_tokens": 10, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 2}}


def event(data: Any, **fields: str) -> bytes:
    return serialize_event(orjson.dumps(data), **fields)


def chunk(content: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    return event({"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more})


def response(kind: str, number: int, **more: Any) -> bytes:
    return event({"type": kind, "sequence_number": number, **more}, event=kind)


USAGE_EVENT = event({"id": "c", "choices": [], "usage": COUNTED})


def watch(endpoint: Any, pieces: Iterable[bytes], **more: Any) -> tuple[StreamWatch, bytes, bytes]:
    """The watch after the stream, what it let go at once, and what it held for the end."""
    seen = StreamWatch(endpoint, **more)
    left = b"".join([seen.feed(piece) for piece in pieces])
    rest = seen.finish()
    return seen, left, rest + seen.release()


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def whole_events(endpoint: str, stream: Iterable[bytes]) -> bytes:
    """The stream without an event that was cut; one that lacks its blank line only is whole."""
    *first, last = [*stream] or [b""]
    text = parse_event(last).data
    try:
        is_cut = bool(text) and text != b"[DONE]" and not orjson.loads(text)
    except orjson.JSONDecodeError:
        is_cut = endpoint != "relay"
    return b"".join(first) + (b"" if is_cut else last)


# -- what is known by its surroundings


@pytest.mark.parametrize(
    "last",
    [
        chunk("a", finish="stop"),
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
        DONE,
    ],
)
def test_an_end_is_seen_after_any_number_of_plain_events(last):
    seen, left, held = watch("chat", [chunk("a"), chunk("b"), chunk('say "c"'), chunk(""), chunk("d"), last])

    assert seen.is_complete
    assert left + held == chunk("a") + chunk("b") + chunk('say "c"') + chunk("") + chunk("d") + last


def test_an_error_with_as_many_quotes_as_plain_events_is_seen():
    plain = chunk("a")
    told = b'data: {"error":{"message":"m","type":"t","code":"c","p":1}}\n\n'
    assert plain.count(b'"') == told.count(b'"')

    seen, left, _ = watch("chat", [plain, plain, told])

    assert seen.error is not None
    assert left == plain * 2


@pytest.mark.parametrize(
    "last",
    [
        chunk("a", finish="stop"),
        DONE,
        USAGE_EVENT + DONE,
        event({"error": {"message": "m"}}),
        chunk('say "usage"') + chunk("a", finish="stop"),
    ],
)
def test_an_end_is_seen_behind_plain_events_that_came_together(last):
    plain = chunk("a") + chunk("b") + chunk('c"d') + chunk("e")

    seen, left, held = watch("chat", [chunk("a"), chunk("b") + chunk("c"), plain + last])

    assert seen.is_complete or seen.error is not None
    assert left.startswith(chunk("a") + chunk("b") + chunk("c") + plain)
    if seen.error is None:
        assert left + held == chunk("a") + chunk("b") + chunk("c") + plain + last


def test_a_usage_is_seen_in_an_event_that_begins_like_plain_ones_and_came_with_one():
    seen, left, _ = watch("chat", [chunk("a"), chunk("b", usage=COUNTED) + chunk("c")])

    assert seen.usage == Usage(10, 5)
    assert left == chunk("a") + chunk("b", usage=COUNTED) + chunk("c")


def test_plain_events_pass_as_they_came_however_many_came_together():
    """The same object: whoever relays it need not look at it again."""
    seen = StreamWatch("chat")
    pieces = [chunk("a"), chunk("b") + chunk("c"), chunk("d"), chunk("") * 7, chunk('e"') + chunk("f"), chunk("g")]

    assert all(seen.feed(piece) is piece for piece in pieces)
    assert seen.output_bytes == len('abcde"fg')


def text_delta(text, number, padding):
    told = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": text, "sequence_number": number}
    told |= {"obfuscation": padding} if padding else {}
    return b"event: response.output_text.delta\n" + event(told)


SHAPES = {
    "chat": lambda text, number, padding: chunk(text),
    "chat, padded": lambda text, number, padding: chunk(text, obfuscation=padding),
    "reasoning": lambda text, number, padding: event({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}),
    "arguments": lambda text, number, padding: event(
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}]}
    ),
    "completions": lambda text, number, padding: event(
        {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
    ),
    "responses": text_delta,
}


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_what_was_said_is_counted_never_less_and_hardly_more(shape, data):
    texts = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8))
    paddings = data.draw(st.lists(st.text("xyz", max_size=5), min_size=len(texts), max_size=len(texts)))
    events = [SHAPES[shape](text, n, pad) for n, (text, pad) in enumerate(zip(texts, paddings, strict=True))]
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    endpoint = {"completions": "completions", "responses": "responses"}.get(shape, "chat")
    seen = StreamWatch(endpoint)

    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > begin:
            seen.feed(stream[begin:end])
    seen.take_unfinished()

    said = sum(len(text.encode()) for text in texts)
    written = sum(len(orjson.dumps(text)) - 2 for text in texts)
    assert said <= seen.output_bytes <= written + sum(map(len, paddings)) + 40 * len(texts)


def test_half_an_event_counts_with_what_has_come_of_it():
    seen = StreamWatch("chat")
    seen.feed(chunk("a") + chunk("bcd")[:-9])

    assert seen.take_unfinished() == b""
    assert seen.output_bytes == len("a") + len(chunk("bcd")[:-9])


# -- when a stream is complete


@pytest.mark.parametrize(
    ("endpoint", "stream", "more", "is_complete"),
    [
        ("chat", [], {}, False),
        ("chat", [chunk("a")], {}, False),
        ("chat", [chunk("a"), chunk(finish="stop")], {}, True),
        ("chat", [chunk("a"), DONE], {}, True),
        ("chat", [chunk("a"), b"data:[DONE]\r\n\r\n"], {}, True),
        ("chat", [chunk("a"), b"data: [DONE]"], {}, True),
        ("chat", [chunk("a"), b"data: [DON"], {}, False),
        ("chat", [chunk("a"), chunk(finish="stop")[:-1]], {}, True),
        ("chat", [chunk("a"), chunk(finish="stop")[:-4]], {}, False),
        ("chat", [chunk("a"), USAGE_EVENT], {}, False),
        ("chat", [chunk('data: [DONE] "finish_reason":"stop"')], {}, False),
        ("chat", [chunk("a"), chunk("b", index=1), chunk(finish="stop")], {"choices": 2}, False),
        ("chat", [chunk("a"), chunk("b", index=1), chunk(finish="stop"), DONE], {"choices": 2}, True),
        ("chat", [chunk("a"), chunk(finish="stop"), chunk("b", index=1), chunk(finish="length", index=1)], {"choices": 2}, True),
        ("chat", [chunk("a"), chunk(finish="stop"), chunk("b", index=1)], {"choices": 2}, False),
        ("completions", [event({"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]})], {}, True),
        ("completions", [event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})], {}, False),
        ("responses", [response("response.created", 0)], {}, False),
        ("responses", [response("response.output_text.delta", 1, delta="response.completed")], {}, False),
        ("responses", [response("response.completed", 1, response={})], {}, True),
        ("responses", [response("response.incomplete", 1, response={})], {}, True),
        ("responses", [response("response.failed", 1, response={})], {}, True),
        ("responses", [response("error", 1, code="x", message="m")], {}, True),
        ("responses", [response("response.created", 0), DONE], {}, False),
        ("responses", [response("response.completed", 1, response={})[:-9]], {}, False),
        ("relay", [], {}, True),
        ("relay", [b"event: thread.run\ndata: half"], {}, True),
    ],
)  # fmt: skip
def test_a_stream_is_complete_by_the_rule_of_its_endpoint(endpoint, stream, more, is_complete):
    for pieces in (stream, in_pieces(b"".join(stream), 1), in_pieces(b"".join(stream), 7)):
        seen, left, held = watch(endpoint, pieces, **more)

        assert (is_complete, whole_events(endpoint, stream)) == (seen.is_complete, left + held)


def test_the_end_is_held_from_the_usage_on():
    stream = [chunk("a"), chunk(finish="stop"), USAGE_EVENT, DONE]

    seen, left, held = watch("chat", stream)

    assert (stream[0] + stream[1], USAGE_EVENT + DONE) == (left, held)
    assert seen.usage == Usage(10, 5)


def test_a_usage_that_comes_with_the_finish_reason_is_held_with_it():
    last = chunk(finish="stop", usage=COUNTED)

    seen, left, held = watch("chat", [chunk("a"), last])

    assert (chunk("a"), last, Usage(10, 5)) == (left, held, seen.usage)


def test_a_running_usage_beside_content_is_no_end():
    """vLLM's `continuous_usage_stats`, and others that count as they go: the last one counts."""
    first, second = chunk("a", usage={"prompt_tokens": 10, "completion_tokens": 1}), chunk("b", usage=COUNTED)

    seen, left, _ = watch("chat", [first, second])

    assert (first + second, Usage(10, 5)) == (left, seen.usage)


def test_content_after_what_looked_like_the_end_lets_go_what_was_held():
    seen = StreamWatch("chat")

    assert seen.feed(USAGE_EVENT) == b""
    assert seen.feed(chunk("more")) == USAGE_EVENT + chunk("more")


@pytest.mark.parametrize("hides", [False, True])
def test_only_a_usage_event_with_empty_choices_is_kept_from_the_client(hides):
    filters = event({"choices": [], "prompt_filter_results": []})
    last = chunk(finish="stop", usage=COUNTED)

    seen, left, held = watch("chat", [filters, chunk("a"), last, USAGE_EVENT, DONE], hides_usage=hides)

    assert filters + chunk("a") == left
    assert last + (b"" if hides else USAGE_EVENT) + DONE == held
    assert seen.usage == Usage(10, 5)


# -- events that are cut anywhere, and giants

BROKEN = (b"data: {broken\n\n", b"data: 1\ndata: 2\n\n")
EVENTS = st.sampled_from(
    [
        *BROKEN,
        chunk("ü€𝄞"), chunk("a", index=1), chunk(finish="stop"), chunk(finish="stop", usage=COUNTED), USAGE_EVENT, DONE, b": comment\n\n",
        b"\n", b"event: ping\ndata: now\n\n", chunk("cr").replace(b"\n", b"\r\n"), b"event: error\ndata: {}\r\n\r\n",
    ]
)  # fmt: skip


@given(st.lists(EVENTS, max_size=8), st.data())
@settings(deadline=None)
def test_no_byte_is_lost_or_moved_and_the_verdict_is_the_same_wherever_it_is_cut(events, data):
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]

    seen, left, held = watch("chat", pieces)
    whole, *told = watch("chat", [stream] if stream else [])

    readable = b"".join([event for event in events if event not in BROKEN])
    assert left + held == b"".join(told)
    assert readable.startswith(left + held)
    assert seen.is_unreadable or left + held == readable
    assert (seen.is_complete, seen.usage, seen.is_unreadable) == (whole.is_complete, whole.usage, whole.is_unreadable)


@given(st.binary(max_size=200), st.sampled_from(["chat", "completions", "responses", "relay"]), st.data())
@settings(deadline=None)
def test_no_bytes_make_the_watch_raise_and_all_that_leaves_can_be_read(noise, endpoint, data):
    cut = data.draw(st.integers(0, len(noise)))
    stream = noise[:cut] + chunk("a") + noise[cut:]

    _, left, held = watch(endpoint, [piece for piece in (stream[:cut], stream[cut:]) if piece])

    splitter = SseSplitter()
    for block in [*splitter.feed(left + held), splitter.tail]:
        told = parse_event(block)
        if told.event is None and (text := told.data.strip()) not in (b"", b"[DONE]") and endpoint != "relay":
            assert isinstance(orjson.loads(text), dict)
    assert endpoint != "relay" or left + held == stream


@pytest.mark.parametrize(
    "broken",
    [
        b"data: no JSON\n\n", b'data: {"choices":[{"ind\n\n', b"data: null\n\n", b"data: [1]\n\n", b"data: <html>\r\n\r\n", b"event: error\ndata: busy\n\n",
        chunk("a")[:-3] + b"\n\n", b'data: {"a":1},{"b":2}\n\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [chunk("a"), chunk("a") + chunk("b")])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_event_that_is_no_json_object_ends_the_stream_unseen(broken, before, size):
    for stream in (before + broken + chunk("c") + chunk(finish="stop") + DONE, before + broken):
        seen, left, held = watch("chat", in_pieces(stream, size))

        assert (left + held, seen.is_complete, seen.is_unreadable) == (before, False, True)


@pytest.mark.parametrize("delta", [5, "tool_calls", ["tool_calls"], True, None])
@pytest.mark.parametrize("name", ["delta", "finish_reason", "index", "logprobs"])
def test_objects_of_an_odd_shape_pass_as_they_are(name, delta):
    odd = event({"choices": [{"index": 0, name: delta}]})

    seen, left, held = watch("chat", [chunk("a"), odd, event({"choices": 5}), event({"choices": [5]}), event({}), DONE])

    assert (seen.is_complete, seen.is_unreadable) == (True, False)
    assert left + held == chunk("a") + odd + event({"choices": 5}) + event({"choices": [5]}) + event({}) + DONE


def test_a_broken_event_among_learned_ones_is_found():
    stream = [
        chunk("a"),
        chunk("b"),
        chunk("c") + b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"d\n\n' + chunk("e"),
    ]

    seen, left, held = watch("chat", stream)

    assert (left + held, seen.is_unreadable) == (chunk("a") + chunk("b") + chunk("c"), True)


@pytest.mark.parametrize("text", ["event: response.output_text.delta\ndata: {\n\n", "event: ping\ndata: now\n\n"])
def test_every_event_of_a_response_is_an_object(text):
    seen, left, held = watch(
        "responses", [response("response.created", 0), text.encode(), response("response.completed", 1)]
    )

    assert (left + held, seen.is_unreadable) == (response("response.created", 0), True)


def test_what_cannot_be_read_after_the_end_is_dropped_and_does_no_harm():
    stream = [chunk("a"), chunk(finish="stop"), b"data: bye\n\n", USAGE_EVENT, DONE, b"data: bye\n\n"]

    seen, left, held = watch("chat", stream)

    assert left + held == chunk("a") + chunk(finish="stop") + USAGE_EVENT + DONE
    assert (seen.is_complete, seen.is_unreadable, seen.usage) == (True, False, Usage(10, 5))


@pytest.mark.parametrize("size", [1 << 13, 200_000, 1 << 22])
@pytest.mark.parametrize(
    ("endpoint", "last"),
    [
        ("responses", response("response.completed", 7, response={"output": ["A" * 3_000_000], "usage": RESPONSE_USAGE, "user": None})),
        ("chat", chunk("A" * 3_000_000, finish="stop", usage={**COUNTED, "completion_tokens_details": {"reasoning_tokens": 2}})),
        ("chat", event({"usage": {**COUNTED, "completion_tokens_details": {"reasoning_tokens": 2}}, "choices": [{"finish_reason": "stop", "index": 0, "delta": {"content": "A" * 3_000_000}}]})),
    ],
    ids=["responses", "chat", "chat-usage-first"],
)  # fmt: skip
def test_a_giant_last_event_is_an_end_with_its_usage(endpoint, last, size):
    """Symptom: a `response.completed` with a picture in it was relayed unread, so the complete stream ended with an error event and was cut."""
    assert len(last) > EVENT_BYTES_MAX

    seen, left, held = watch(endpoint, in_pieces(last, size))

    assert seen.is_complete
    # What ran of hosted tools can't be counted in what is not read.
    is_read = endpoint != "responses" or size > len(last)
    assert seen.usage == Usage(10, 5, reasoning_tokens=2, tool_calls=() if is_read else UNREAD_CALLS)
    assert left + held == last
    assert held or size > HELD_BYTES_MAX, "its last bytes wait for settlement"


def test_a_giant_event_that_is_cut_is_no_end():
    last = response("response.completed", 7, response={"output": ["A" * 3_000_000], "usage": RESPONSE_USAGE})[:-3]

    seen, left, held = watch("responses", in_pieces(last, 100_000))

    assert (seen.is_complete, seen.is_inside_event, seen.next_sequence_number) == (False, True, 8)
    assert left + held == last


def test_a_giant_event_in_the_middle_is_no_end_and_costs_bounded_memory():
    picture = response("response.image_generation_call.partial_image", 3, partial_image_b64="A" * 10_000_000)
    seen = StreamWatch("responses")

    left = []
    for piece in in_pieces(picture, 65_536):
        left.append(seen.feed(piece))
        assert seen._splitter is None or len(seen._splitter.tail) <= EVENT_BYTES_MAX
    assert b"".join(left) == picture
    assert all(left[EVENT_BYTES_MAX // 65_536 :]), "what is known to be a giant waits no longer"
    assert (seen.is_complete, seen.next_sequence_number) == (False, 4)


def test_giants_after_a_held_usage_keep_their_place():
    stream = [USAGE_EVENT, *in_pieces(chunk("A" * 3_000_000), 300_000), chunk(finish="stop"), DONE]

    seen, left, held = watch("chat", stream)

    assert left + held == b"".join(stream)
    assert seen.is_complete


def test_nothing_follows_an_error_event():
    error = event({"error": {"message": "m"}})

    seen, left, held = watch("chat", [chunk("a"), error, DONE])

    assert (seen.is_complete, left, held) == (False, chunk("a"), error)


@pytest.mark.parametrize(
    ("events", "usage", "is_final"),
    [
        ([chunk("a"), chunk(finish="stop"), USAGE_EVENT, USAGE_EVENT, DONE], (10, 5), True),
        ([chunk("a"), chunk(finish="stop"), USAGE_EVENT, event({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})], (10, 5), True),
        ([chunk("a", usage=COUNTED), chunk("b"), chunk(finish="stop"), DONE], (10, 5), False),
        ([USAGE_EVENT, chunk("a"), chunk("b"), chunk(finish="stop"), DONE], (10, 5), False),
        ([chunk("a", usage=COUNTED), chunk(finish="stop"), event({"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": 9}}), DONE], (10, 5), False),
        ([chunk("a", usage=COUNTED), chunk("b", usage={"prompt_tokens": 10, "completion_tokens": 9}), chunk(finish="stop", usage={"prompt_tokens": 10, "completion_tokens": 9}), DONE], (10, 9), True),
    ],
)  # fmt: skip
def test_a_usage_that_more_has_followed_is_not_the_last_word(
    events: list[bytes], usage: tuple[int, int], is_final: bool
) -> None:
    seen, _, _ = watch("chat", events)

    assert seen.usage is not None
    assert (seen.usage[:2], seen.is_usage_final) == (usage, is_final)
    assert seen.is_complete


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["text", "quote", "tool", "ping", "windows", "error"]), min_size=10, max_size=60),
    st.lists(st.integers(0, 12_000), max_size=6),
)
def test_many_events_in_one_chunk_are_read_as_one_by_one(kinds, cuts):
    """Only those that the ends of a chunk have cut are looked at one by one; what is seen and what leaves is the same."""
    made = {
        "text": chunk("some words "),
        "quote": chunk('say "this"'),
        "tool": event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}),
        "ping": b": ping\n\n",
        "windows": chunk("x").replace(b"\n", b"\r\n"),
        "error": event({"error": {"message": "m"}}),
    }
    stream = b"".join(made[kind] for kind in kinds) + chunk(finish="stop") + USAGE_EVENT + DONE
    ends = sorted({min(cut, len(stream)) for cut in (*cuts, len(stream))})

    def see(pieces):
        seen = StreamWatch("chat")
        left = b"".join(map(seen.feed, pieces)) + seen.take_unfinished() + seen.release()
        return left, seen.usage, seen.is_complete, seen.output_bytes, seen.error, seen.has_tool_call

    whole = see([stream[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if end > begin])
    assert whole == see([stream[at : at + 1] for at in range(len(stream))])
