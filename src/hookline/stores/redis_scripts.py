"""The Lua scripts: read from lua/, named by what they decide.

Lives here: reading the text, its digest. Elsewhere: what runs them (redis_client.py), what their numbers mean (redis_limits.py, and on top of each script).
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
