"""The Lua scripts and the keys they work on.

Lives here: reading the text, its digest; how keys are called. Elsewhere: what runs them (redis_client.py), what their numbers mean (redis_limits.py, and on top of each script).
Idea: EVALSHA by digest; a server that does not know the digest (restart, SCRIPT FLUSH, a replica that took over) gets the text once, which also loads it."""

from __future__ import annotations

import hashlib
from importlib import resources


class Script:
    """One decision: its text, and the name the server knows it by."""

    __slots__ = ("digest", "text")

    def __init__(self, name: str) -> None:
        folder = resources.files("hookline.stores") / "lua"
        self.text = (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class LimitKeys:
    """Names of all keys of the limits; the hash tag keeps them on one node of a cluster."""

    __slots__ = ("board", "epoch", "in_flight", "money", "record", "window", "workers")

    def __init__(self, prefix: str) -> None:
        tag = f"{{{prefix}}}"
        self.window, self.money, self.record = f"{tag}:w:", f"{tag}:b:", f"{tag}:r:"
        self.board = f"{tag}:n:"
        self.in_flight, self.epoch, self.workers = f"{tag}:in-flight", f"{tag}:epoch", f"{tag}:workers"
