"""Response cache: the same question gets the same answer, without an upstream.

Lives here: `Plugin`; the rooms are options.py, wishes.py (what may be cached), key.py, meaning.py (what a model's name stands for), recording.py and entry.py (what is kept),
assemble.py and disassemble.py (a stream as a plain reply, and the other way round), replay.py, embeddings.py, refresh.py, purge.py, and plugin.py, which joins them.
Elsewhere: where entries live (`host.replies`, stores/), calls in flight (`host.flights`), who sees the status (logging.py, metrics.py).
Idea: the key is made of everything that can change the answer; what comes back is what was relayed, as the plugins listed after this one left it."""

from hookline.builtins.cache.options import CacheOptions
from hookline.builtins.cache.plugin import Plugin

__all__ = ["CacheOptions", "Plugin"]
