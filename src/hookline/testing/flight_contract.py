"""What every FlightStore must do, as tests.

Lives here: the suite of the protocol. Elsewhere: the other stores' (store_contracts.py, record_contract.py), the protocol (stores/protocols.py).
Idea: subclass it, give it a store; times are real and short, because a remote store has its own clock.

    class TestMyFlights(FlightStoreContract):
        @pytest.fixture
        async def store(self): ..."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

from hookline.stores.protocols import FlightStore

LONG_S = 60.0
SHORT_S = 0.2


class FlightStoreContract:
    """Fixture `store`: a FlightStore whose time passes by itself."""

    @pytest.fixture
    def key(self) -> bytes:
        """One that no other test uses, with bytes of every sort."""
        return b"\x00\xff{}:" + uuid.uuid4().bytes

    async def test_one_of_many_claims_and_the_others_are_told_whose_it_is(self, store: FlightStore, key: bytes) -> None:
        claims = [b"C%d" % n for n in range(20)]

        answers = await asyncio.gather(*(store.claim(key, claim, ttl_s=LONG_S) for claim in claims))

        winners = [claim for claim, answer in zip(claims, answers, strict=True) if answer is None]
        assert len(winners) == 1
        assert {answer for answer in answers if answer is not None} == set(winners)

    async def test_a_claim_ends_by_itself(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=SHORT_S)

        await _until_free(store, key, b"C2")

        assert await store.renew(key, b"C1", ttl_s=LONG_S) is None
        assert await store.renew(key, b"C2", ttl_s=LONG_S) is not None

    async def test_a_renewed_claim_goes_on(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=SHORT_S)
        assert await store.renew(key, b"C1", ttl_s=LONG_S) is False

        await asyncio.sleep(2 * SHORT_S)

        assert await store.claim(key, b"C2", ttl_s=LONG_S) == b"C1"

    @pytest.mark.parametrize("asks", ["claim", "peek"])
    async def test_whoever_asks_is_known_to_wait(self, store: FlightStore, key: bytes, asks: str) -> None:
        await store.claim(key, b"C1", ttl_s=LONG_S)
        assert await store.renew(key, b"C1", ttl_s=LONG_S) is False

        await (store.claim(key, b"C2", ttl_s=LONG_S) if asks == "claim" else store.peek(key, 0))

        assert await store.renew(key, b"C1", ttl_s=LONG_S) is True
        assert await store.release(key, b"C1", unless_wanted=True) is True
        assert await store.release(key, b"C1", unless_wanted=False) is False
        assert await store.claim(key, b"C3", ttl_s=LONG_S) is None
        assert await store.renew(key, b"C3", ttl_s=LONG_S) is False, "a new flight is wanted by nobody yet"

    async def test_a_claim_that_nobody_waits_for_is_released(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=LONG_S)

        assert await store.release(key, b"C1", unless_wanted=True) is False

        assert await store.claim(key, b"C2", ttl_s=LONG_S) is None

    async def test_what_is_shown_is_read_from_any_offset(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=LONG_S)
        assert await store.peek(key, 0) == (b"C1", b"")

        assert await store.append(key, b"C1", b"ab\x00") is True
        assert await store.append(key, b"C1", b"\xffcd") is True

        assert [await store.peek(key, n) for n in (0, 2, 6)] == [
            (b"C1", p) for p in (b"ab\x00\xffcd", b"\x00\xffcd", b"")
        ]

    async def test_what_is_shown_ends_with_its_claim(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=LONG_S)
        await store.append(key, b"C1", b"old")
        await store.release(key, b"C1", unless_wanted=False)
        assert await store.peek(key, 0) == (None, b"")

        await store.claim(key, b"C2", ttl_s=LONG_S)

        assert await store.peek(key, 0) == (b"C2", b"")

    async def test_a_kept_reply_takes_the_place_of_the_claim(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=LONG_S)
        assert await store.read(key) is None

        await _done(store.keep(key, b"C1", b"=re\x00ply", ttl_s=LONG_S))

        assert await store.read(key) == b"=re\x00ply"
        assert await store.peek(key, 3) == (b"==re\x00ply", b"")
        assert await store.claim(key, b"C2", ttl_s=LONG_S) == b"==re\x00ply"
        assert await store.release(key, b"C1", unless_wanted=False) is False
        assert await store.read(key) == b"=re\x00ply"

    async def test_a_kept_reply_ends(self, store: FlightStore, key: bytes) -> None:
        await _done(store.keep(key, None, b"reply", ttl_s=SHORT_S))
        assert await store.read(key) == b"reply"

        await _until_free(store, key, b"C1")

    async def test_who_is_late_changes_nothing(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=SHORT_S)
        await _until_free(store, key, b"C2")

        await _done(store.keep(key, b"C1", b"late", ttl_s=LONG_S))
        assert await store.append(key, b"C1", b"late") is False
        assert await store.release(key, b"C1", unless_wanted=False) is False

        assert await store.peek(key, 0) == (b"C2", b"")

    async def test_a_late_reply_is_kept_where_nobody_else_has_begun(self, store: FlightStore, key: bytes) -> None:
        await store.claim(key, b"C1", ttl_s=SHORT_S)
        await asyncio.sleep(2 * SHORT_S)

        await _done(store.keep(key, b"C1", b"late", ttl_s=LONG_S))

        assert await store.read(key) == b"late"


async def _until_free(store: FlightStore, key: bytes, claim: bytes) -> None:
    give_up_at = time.monotonic() + 10
    while await store.claim(key, claim, ttl_s=LONG_S) is not None:
        assert time.monotonic() < give_up_at, "what should have ended is still there"
        await asyncio.sleep(SHORT_S / 5)


async def _done(pending: Any) -> None:
    if pending is not None:
        await pending
