"""Compressed bodies, undone as they come and never beyond the bound."""

import asyncio
import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookline.transport import BodyTooLarge, TransportError, decoded

TEXT = b"data: {}\n\n" * 1000


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


CODINGS = pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
    ids=["gzip", "x-gzip", "deflate", "raw deflate"],
)


async def as_chunks(data: bytes, size: int = 7):
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def decode(data: bytes, encoding: str, max_bytes: int = 1_000_000, size: int = 7) -> bytes:
    return b"".join([piece async for piece in decoded(as_chunks(data, size), encoding, max_bytes)])


@CODINGS
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_compressed_body_comes_out_as_it_was(encoding, encode, size):
    assert await decode(encode(TEXT), encoding, size=size) == TEXT


async def test_an_event_that_was_flushed_comes_out_before_the_next_chunk_is_awaited():
    compressor = zlib.compressobj(wbits=31)
    out = []

    async def upstream():
        yield compressor.compress(b"data: 1\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert out == [b"data: 1\n\n"]
        yield compressor.compress(b"data: 2\n\n") + compressor.flush()

    async for piece in decoded(upstream(), "gzip", 1000):
        out.append(piece)

    assert b"".join(out) == b"data: 1\n\ndata: 2\n\n"


async def test_members_that_follow_one_another_are_one_body():
    assert await decode(gzip.compress(b"one") + gzip.compress(b"two"), "gzip") == b"onetwo"


@CODINGS
async def test_a_small_body_that_becomes_a_large_one_is_stopped_on_the_way(encoding, encode):
    bomb = encode(b"\0" * 50_000_000)
    made = 0

    with pytest.raises(BodyTooLarge) as refused:
        async for piece in decoded(as_chunks(bomb, 100_000), encoding, 1_000_000):
            made += len(piece)

    assert refused.value.limit_bytes == 1_000_000
    assert made <= 1_000_000


async def test_what_one_chunk_becomes_is_made_in_small_steps():
    bomb = gzip.compress(b"\0" * 10_000_000)

    sizes = [len(piece) async for piece in decoded(as_chunks(bomb, len(bomb)), "gzip", 20_000_000)]

    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 64 * 1024


@CODINGS
async def test_a_body_that_is_cut_is_an_error(encoding, encode):
    with pytest.raises(TransportError, match="damaged") as failed:
        await decode(encode(TEXT)[:-1], encoding)

    assert failed.value.kind == "garbage"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_compressed_at_all_is_an_error(encoding):
    with pytest.raises(TransportError, match="damaged"):
        await decode(b"\xff plain text", encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_an_empty_body_is_empty(encoding):
    assert await decode(b"", encoding) == b""


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", ""])
async def test_other_encodings_are_refused(encoding):
    with pytest.raises(ValueError, match="cannot be decoded"):
        await decode(b"x", encoding)


@settings(deadline=None)  # a busy machine is no defect
@given(st.binary(max_size=50), st.sampled_from(["gzip", "deflate"]))
def test_nothing_but_a_transport_error_comes_of_damaged_bytes(data, encoding):
    with suppress(TransportError):
        asyncio.run(decode(data, encoding, max_bytes=1000))
