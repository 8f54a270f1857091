"""Content types: whether a body is JSON.

Lives here: what a `content-type` says of a request's body. Elsewhere: reading it (surfaces/request_body.py, parameters.py).
Idea: sloppy clients send JSON under curl's default type or none, so only a type that clearly says something else is something else."""

from __future__ import annotations

from typing import Literal

Kind = Literal["json", "vague", "other"]
VAGUE_TYPES = frozenset({"", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"})
"""What sloppy clients call JSON: no type at all, curl's default, ..."""


def kind_of(content_type: str) -> Kind:
    """What a content type says about a body."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return "json"
    return "vague" if media_type in VAGUE_TYPES else "other"
