"""Responses reasoning: the signed thinking of a chat provider as the opaque part of a reasoning item.

Lives here: `thinking_blocks` (anthropic_reply.py) into `encrypted_content`, and back.
Elsewhere: reasoning items in replies and streams (responses_reply.py, responses_stream.py), in requests (responses_request.py).
Idea: clients of `/v1/responses` send reasoning items back as they got them, so that is where the signatures travel that a tool loop needs. It is packing, not encryption: the upstream signed it."""

from __future__ import annotations

import base64
import binascii

import orjson

from hookline.providers.untranslatable import JsonObject

_MARK = "thinking_blocks:"


def pack_thinking(blocks: list[JsonObject]) -> str:
    """What becomes `encrypted_content`."""
    return _MARK + base64.b64encode(orjson.dumps(blocks)).decode()


def unpack_thinking(encrypted_content: object) -> list[JsonObject]:
    """The blocks, none if this is not ours: reasoning of another provider means nothing to this one."""
    if not isinstance(encrypted_content, str) or not encrypted_content.startswith(_MARK):
        return []
    try:
        blocks = orjson.loads(base64.b64decode(encrypted_content[len(_MARK) :], validate=True))
    except (binascii.Error, ValueError):
        return []
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
