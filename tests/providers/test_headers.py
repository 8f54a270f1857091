"""Which headers cross, in each direction."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from hookline.providers.headers import MAX_LINES, ReplyHeaders, RequestHeaders

# Written out, not taken from the code: these lists are a promise.
HOP_BY_HOP = (
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade"
)
SECRETS = "authorization proxy-authorization api-key x-api-key x-goog-api-key cookie openai-organization openai-project"
OURS = "host content-length expect accept-encoding content-encoding idempotency-key x-hookline-cache x-hookline-explain"

ANOTHER_REQUEST = "x-http-method-override x-http-method x-method-override x-original-url x-rewrite-url"


def sent(headers: list[tuple[str, str]], replaced: tuple[str, ...] = ()) -> list[bytes]:
    return RequestHeaders(replaced).lines(CIMultiDict(headers)).split(b"\r\n")[:-1]


@pytest.mark.parametrize(
    "name", sorted({*HOP_BY_HOP.split(), *SECRETS.split(), *OURS.split(), *ANOTHER_REQUEST.split()})
)
@pytest.mark.parametrize("spell", [str, str.title, str.upper])
def test_never_sent_upstream_however_it_is_spelled(name: str, spell: type) -> None:
    assert sent([(spell(name), "canary")]) == []


def test_everything_else_goes_on_as_it_was_spelled_and_in_order() -> None:
    headers = [("User-Agent", "x/1"), ("X-Stainless-Lang", "python"), ("x-two", "a"), ("X-Two", "b"), ("accept", "*/*")]

    assert [f"{name}: {value}".encode() for name, value in headers] == sent(headers)


def test_what_a_later_connection_line_names_stays_here() -> None:
    headers = [("Connection", "keep-alive"), ("x-hop", "1"), ("connection", "X-Hop"), ("x-kept", "2")]

    assert sent(headers) == [b"x-kept: 2"]


def test_what_connection_names_stays_here() -> None:
    headers = [
        ("Connection", "close, X-Secret-Hop"),
        ("connection", "x-other"),
        ("X-Secret-Hop", "1"),
        ("X-Other", "2"),
        ("X-Kept", "3"),
    ]

    assert sent(headers) == [b"X-Kept: 3"]


def test_a_header_the_provider_writes_replaces_the_clients() -> None:
    assert sent([("X-A", "1"), ("x-b", "2")], replaced=("x-a",)) == [b"x-b: 2"]


def test_bytes_that_are_no_utf8_pass_unchanged() -> None:
    assert sent([("x-name", b"caf\xe9".decode("utf-8", "surrogateescape"))]) == [b"x-name: caf\xe9"]


def test_a_line_break_in_a_value_is_refused_without_quoting_it() -> None:
    with pytest.raises(ValueError, match="x-name") as refused:
        sent([("x-name", "canary\r\nx-evil: 1")])
    assert "canary" not in str(refused.value)


def test_changing_values_do_not_grow_the_cache() -> None:
    headers = RequestHeaders()

    for number in range(3 * MAX_LINES):
        headers.lines(
            CIMultiDict([("traceparent", str(number)), (f"x-{number}", "1"), ("content-length", str(number))])
        )

    assert len(headers._lines) <= MAX_LINES


@pytest.mark.parametrize(
    "name", sorted({*HOP_BY_HOP.split(), "set-cookie", "content-length", "date", "x-hookline-deployment"})
)
def test_never_sent_back(name: str) -> None:
    assert dict(ReplyHeaders().read([(name.encode(), b"canary")])) == {}


def test_provider_headers_come_back_and_its_request_id_under_another_name() -> None:
    raw = [
        (b"x-request-id", b"up-1"),
        (b"openai-version", b"v"),
        (b"x-ratelimit-remaining-requests", b"9"),
        (b"retry-after", b"3"),
    ]

    headers = ReplyHeaders().read(raw)

    assert dict(headers) == {
        "x-hookline-upstream-request-id": "up-1",
        "openai-version": "v",
        "x-ratelimit-remaining-requests": "9",
        "retry-after": "3",
    }


def test_what_the_upstreams_connection_names_stays_there() -> None:
    headers = ReplyHeaders().read(
        [(b"connection", b"x-hop"), (b"connection", b"close"), (b"x-hop", b"1"), (b"x-kept", b"2")]
    )

    assert dict(headers) == {"x-kept": "2"}
