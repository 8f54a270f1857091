"""From a name with several addresses to one connection."""

import asyncio
import socket

import pytest

from hookline.transport import Timeouts, TransportError, dial
from hookline.transport.dial import MAX_ADDRESSES, in_turns, resolve

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


@pytest.fixture
def refusing_port():
    with socket.socket() as sock:  # bound, never listening: connections are refused
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def silent_port():
    """A listener whose queue is full: connecting neither works nor fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        first.connect(full.getsockname())
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def resolver_to(*ports):
    async def to_ports(host, port):
        return [(V4, ("127.0.0.1", port)) for port in ports]

    return to_ports


async def answered(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(OK)
    return await (await pending).read()


async def test_a_name_is_resolved(make_pool, upstream, ask):
    assert await answered(make_pool(host="localhost"), upstream, ask) == b"ok"


async def test_an_address_that_refuses_gives_way_to_the_next(make_pool, upstream, ask, refusing_port):
    pool = make_pool(resolver=resolver_to(refusing_port, refusing_port, upstream.port))

    assert await answered(pool, upstream, ask) == b"ok"


async def test_an_address_that_stays_silent_is_overtaken_by_the_next(make_pool, upstream, ask, until, silent_port):
    pool = make_pool(resolver=resolver_to(silent_port, upstream.port))

    assert await answered(pool, upstream, ask) == b"ok"

    await until(lambda: len(asyncio.all_tasks()) == 1)  # the slower attempt is not left behind


async def test_the_first_address_is_preferred_while_it_answers(make_pool, upstream, ask, refusing_port):
    pool = make_pool(resolver=resolver_to(upstream.port, refusing_port))

    assert await answered(pool, upstream, ask) == b"ok"


async def test_all_addresses_refusing_is_one_error_that_names_the_upstream(make_pool, ask, refusing_port):
    pool = make_pool(host="models.example", resolver=resolver_to(refusing_port, refusing_port))

    with pytest.raises(TransportError, match=r"models\.example") as failed:
        await ask(pool)

    assert (failed.value.kind, failed.value.is_written) == ("connect", False)
    assert pool.stats().open == 0


async def test_all_addresses_silent_is_a_connect_timeout(make_pool, ask, silent_port):
    pool = make_pool(resolver=resolver_to(silent_port, silent_port, silent_port))

    with pytest.raises(TransportError) as failed:
        await ask(pool, timeouts=Timeouts(connect_s=0.6))

    assert (failed.value.kind, failed.value.is_written) == ("connect_timeout", False)
    assert pool.stats().open == 0


async def test_cancelled_between_two_addresses_leaves_no_attempt_behind(make_pool, ask, until, silent_port):
    pool = make_pool(resolver=resolver_to(silent_port, silent_port))
    pending = asyncio.ensure_future(ask(pool))
    await until(lambda: len(asyncio.all_tasks()) == 3)  # this one, the request, its first attempt

    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending

    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert pool.stats().open == 0


async def test_cancelled_in_the_turn_in_which_an_address_answers_closes_the_socket(monkeypatch, until):
    answers = asyncio.Event()
    opened = []

    async def connect_when_told(address):
        await answers.wait()
        opened.append(socket.socket())
        return opened[0]

    monkeypatch.setattr(dial, "connect_one", connect_when_told)
    pending = asyncio.ensure_future(dial.connect_first([(V4, ("192.0.2.1", 80)), (V4, ("192.0.2.2", 80))]))
    await until(lambda: len(asyncio.all_tasks()) == 3)

    answers.set()
    await until(lambda: len(opened) == 1)
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    await until(lambda: len(asyncio.all_tasks()) == 1)

    assert [sock.fileno() for sock in opened] == [-1]


@pytest.mark.parametrize("host", ["no-such-name.invalid", "."])
async def test_a_name_that_does_not_exist_is_a_connect_error(make_pool, ask, host):
    with pytest.raises(TransportError) as failed:
        await ask(make_pool(host=host, port=1))

    assert failed.value.kind == "connect"


async def test_a_name_without_address_is_a_connect_error(make_pool, ask):
    with pytest.raises(TransportError, match="no address") as failed:
        await ask(make_pool(resolver=resolver_to()))

    assert failed.value.kind == "connect"


async def test_a_peer_that_hangs_up_at_once_is_an_error_and_frees_its_place(make_pool, upstream, outcome, ask):
    pool = make_pool(max_connections=1)

    async def hang_up(peer):
        peer.close()

    upstream.serve(hang_up)
    for _ in range(20):
        assert await outcome(ask(pool)) == (0, b"", "reset")
    assert pool.stats().open == 0


async def test_a_peer_that_speaks_first_is_never_taken_at_its_word(make_pool, upstream, outcome, ask):
    """A reply that was there before the request belongs to nobody."""
    pool = make_pool()

    async def greet(peer):
        await peer.send(OK)
        await peer.receive_request()

    upstream.serve(greet)
    for _ in range(20):
        status, body, kind = await outcome(ask(pool))
        assert (status, body, kind) == (0, b"", "reset") or (status, body, kind) == (200, b"ok", "")


@pytest.mark.parametrize(("host", "family"), [("192.0.2.1", V4), ("2001:db8::1", V6)])
def test_numbers_are_resolved_without_asking_anybody(host, family):
    """There is no loop here, so nobody could be asked."""
    with pytest.raises(StopIteration) as done:
        resolve(host, 80).send(None)

    assert [(family, (host, 80))] == done.value.value


def test_families_take_turns_beginning_with_the_resolvers_choice():
    v6 = [(V6, (f"2001:db8::{n}", 80, 0, 0)) for n in range(3)]
    v4 = [(V4, (f"192.0.2.{n}", 80)) for n in range(2)]

    assert [v6[0], v4[0], v6[1], v4[1], v6[2]] == in_turns([*v6, *v4])
    assert [v4[0], v6[0], v4[1], v6[1], v6[2]] == in_turns([*v4, *v6])


def test_a_name_with_very_many_addresses_is_tried_at_a_few():
    many = [(V4, (f"192.0.2.{n}", 80)) for n in range(200)]

    assert len(in_turns(many)) == MAX_ADDRESSES
