"""Replies are held until the end of the loop's turn: nothing that happens meanwhile may lose, double or reorder them."""

from __future__ import annotations

from typing import Any

from hookline.reply import Reply

ASK = b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_a_client_that_closes_its_half_right_after_asking_gets_its_reply(open_door: Any) -> None:
    door = await open_door()
    client = await door.connect()

    client.writer.write(ASK)
    client.writer.write_eof()

    assert (await client.reader.read()).startswith(b"HTTP/1.1 200")


async def test_valid_requests_before_garbage_in_one_packet_are_answered_or_none_is(open_door: Any) -> None:
    door = await open_door()
    client = await door.connect()

    await client.send(ASK * 3 + b"GARBAGE\r\n\r\n")

    seen = await client.reader.read()
    assert seen.count(b"HTTP/1.1 200") in (0, 3)
    assert seen.count(b"HTTP/1.1 400") == 1


async def test_chunks_of_all_sizes_arrive_in_order(open_door: Any) -> None:
    sizes = (1, 70_000, 2, 65_535, 1, 200_000, 3)

    async def answer(call: Any) -> Reply:
        async def body() -> Any:
            for size in sizes:
                yield bytes([65 + size % 26]) * size

        return Reply(200, {}, body())

    door = await open_door(answer)

    reply = await door.ask(ASK)

    assert b"".join(bytes([65 + size % 26]) * size for size in sizes) == reply.body
