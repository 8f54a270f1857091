"""Virtual keys as this process knows them.

Lives here: the keys seen here, what is known to be no key, following the changes in `records`. Elsewhere: the store (hookline.KeyStore), who asks (__init__.py),
what makes and changes keys (key_desk.py).
Idea: a key is asked for once and then known by the hash of its secret; one task asks every POLL_S which keys have changed and replaces just those. So a
known key costs no question, and a revoked one is refused within POLL_S and the time of one question, in every process.

The rules
- While changes are followed, what is known here is true. While they can't be (records is down), a key goes on that was seen here in the last SEEN_S; for
  every other one the answer is 503, because 401 would be a guess.
- An answer is kept only if no change was learnt while it was under way: else a key revoked in between could stay for ever.
- A reload begins with what its predecessor knew, for records may be down just then.
- Everything has a bound: keys, keys that are none, questions under way."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from hashlib import sha256
from math import inf
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

from hookline import Budget, Clock, Host, KeyStore, Limits, Principal, StoredKey, Unavailable
from hookline.builtins.auth.credentials import cannot_tell

POLL_S = 0.4
FRESH_S = 2.0
"""How long after the last look at the changes what is known counts as true."""
SEEN_S = 60.0
ANSWER_S = 2.0
KNOWN_MAX = 10_000
REFUSED_MAX = 10_000
REFUSED_S = 5.0
ASKING_MAX = 64
PAGE = 500
SECRET_PREFIX = "sk-hk-"
"""How a virtual key begins; nothing else is looked for in `records`."""


class Known:
    """A good key. `valid_until` is in Unix seconds, `seen_at` in monotonic ones."""

    __slots__ = ("digest", "id", "principal", "seen_at", "valid_until")

    def __init__(self, digest: bytes, id: str, principal: Principal, valid_until: float, seen_at: float) -> None:
        self.digest = digest
        self.id = id
        self.principal = principal
        self.valid_until = valid_until
        self.seen_at = seen_at


class RecordedKeys:
    """A cache over a `KeyStore`. Everything runs on the loop."""

    _latest: ClassVar[WeakKeyDictionary[KeyStore, ref[RecordedKeys]]] = WeakKeyDictionary()

    def __init__(self, store: KeyStore, host: Host, count: Callable[..., Any]) -> None:
        self._store = store
        self._clock: Clock = host.clock
        self._log = host.log
        self._found, self._unknown, self._failed = count("found"), count("unknown"), count("unavailable")
        self._known: dict[bytes, Known] = {}
        self._digests_by_id: dict[str, set[bytes]] = {}
        self._refused: dict[bytes, tuple[float, str | None]] = {}
        self._asking: dict[bytes, asyncio.Task[Known | str | None]] = {}
        self._refreshing = asyncio.Lock()
        self._number = -1
        """The last change that is known here; -1: none was ever read."""
        self._fresh_until = -inf
        self._is_down = False
        self.has_held_keys: bool | None = None
        """Whether `records` holds or held a key; None: that could never be read."""
        before = self._latest.get(store)
        self._latest[store] = ref(self)
        if before is not None and (former := before()) is not None:
            self._begin_with(former)

    def find(self, digest: bytes, now: float, now_unix: float) -> Principal | None:
        """Who has this secret, if that is known here and true."""
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest) or now_unix >= known.valid_until:
            return None
        if now >= self._fresh_until and now - known.seen_at >= SEEN_S:
            return None
        known.seen_at = now
        return known.principal

    def is_fresh(self, now: float) -> bool:
        """Whether the changes are being followed."""
        return now < self._fresh_until

    async def look_up(self, digest: bytes) -> Principal | str | None:
        """Who has this secret; why it is not good any more; None if it is nobody's. Raises Unavailable."""
        now = self._clock.monotonic()
        if now < self._fresh_until:
            until, why = self._refused.get(digest, (-inf, None))
            if now < until:
                return why
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= ASKING_MAX:
                raise cannot_tell(f"{ASKING_MAX} unknown keys are being looked for already")
            task = asyncio.get_running_loop().create_task(self._ask(digest), name="auth: look for a key")
            self._asking[digest] = task
            task.add_done_callback(lambda task: self._asked(digest, task))
        answer = await asyncio.shield(task)  # it serves others, too: a caller who leaves does not end it
        return answer.principal if isinstance(answer, Known) else answer

    async def watch(self) -> None:
        """Follow the changes, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Learn what has changed. Failures are said once, and by `is_fresh`."""
        async with self._refreshing:
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(ANSWER_S * 2):
                    await self._read_changes()
            except (Unavailable, TimeoutError) as error:
                if not self._is_down:
                    self._log.warning(
                        "keys in records can't be read: %s; those seen here go on for %g s", error, SEEN_S
                    )
                self._is_down = True
                return
            if self._is_down:
                self._log.warning("keys in records can be read again")
            self._is_down = False
            self._fresh_until = began + FRESH_S

    async def aclose(self) -> None:
        """End the questions under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_with(self, former: RecordedKeys) -> None:
        self._known = dict(former._known)
        self._digests_by_id = {id: set(digests) for id, digests in former._digests_by_id.items()}
        self._number, self._fresh_until = former._number, former._fresh_until
        self.has_held_keys = former.has_held_keys

    async def _read_changes(self) -> None:
        while True:
            changes = await self._store.changes(max(self._number, 0), limit=PAGE if self._number >= 0 else 0)
            self.has_held_keys = bool(self.has_held_keys or changes.latest)
            if self._number < 0 or changes.latest < self._number:  # at start; or records came back older than it was
                self._forget_all()
                self._number = changes.latest
                return
            for key in changes.keys:
                self._replace(key)
            if not changes.keys:
                return
            self._number = changes.keys[-1].changed
            if len(changes.keys) < PAGE:
                return

    async def _ask(self, digest: bytes) -> Known | str | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                number, key = self._number, await self._store.find(digest.hex())
                if number != self._number:
                    number, key = self._number, await self._store.find(digest.hex())
        except (Unavailable, TimeoutError) as error:
            self._failed.inc()
            raise cannot_tell("the gateway's records don't answer", getattr(error, "retry_after_s", None)) from error
        if key is not None:
            self.has_held_keys = True
        answer = self._judge(digest, key)
        (self._found if isinstance(answer, Known) else self._unknown).inc()
        if number == self._number:
            self._keep(digest, answer)
        return answer

    def _asked(self, digest: bytes, task: asyncio.Task[Known | str | None]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # looked at, also where every caller has left

    def _judge(self, digest: bytes, key: StoredKey | None) -> Known | str | None:
        if key is None:
            return None
        found = judge(key, digest.hex(), self._clock.time())
        if isinstance(found, str):
            return found
        return Known(digest, key.id, to_principal(key), found, self._clock.monotonic())

    def _keep(self, digest: bytes, answer: Known | str | None) -> None:
        if isinstance(answer, Known):
            while len(self._known) >= KNOWN_MAX:
                self._forget(next(iter(self._known)))
            self._known[digest] = answer
            self._digests_by_id.setdefault(answer.id, set()).add(digest)
            return
        self._forget(digest)
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[digest] = (self._clock.monotonic() + REFUSED_S, answer)

    def _replace(self, key: StoredKey) -> None:
        """A key has changed: those of its secrets that were known here are now what it says."""
        for digest in list(self._digests_by_id.get(key.id, ())):
            old = self._known[digest]
            self._forget(digest)
            new = self._judge(digest, key if digest.hex() in (key.hash, key.old_hash) else None)
            if isinstance(new, Known):
                new.seen_at = old.seen_at
                self._keep(digest, new)
        for hash in (key.hash, key.old_hash):
            if hash is not None:
                self._refused.pop(bytes.fromhex(hash), None)

    def _forget(self, digest: bytes) -> None:
        known = self._known.pop(digest, None)
        if known is not None:
            digests = self._digests_by_id[known.id]
            digests.discard(digest)
            if not digests:
                del self._digests_by_id[known.id]

    def _forget_all(self) -> None:
        self._known.clear()
        self._digests_by_id.clear()
        self._refused.clear()


def hash_secret(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so it needs no slow hash."""
    return sha256(secret.encode()).hexdigest()


def judge(key: StoredKey, hash: str, now: float) -> float | str:
    """Until when (Unix seconds; inf: for ever) a secret of this key is good, or why it is not."""
    if key.revoked_at is not None:
        return "This API key was revoked."
    if key.disabled_at is not None:
        return "This API key is disabled."
    expires_at = inf if key.expires_at is None else key.expires_at
    if now >= expires_at:
        return "This API key has expired."
    if hash == key.hash:
        return expires_at
    old_until = key.old_until or 0.0
    if now >= old_until:
        return "This API key was replaced by a newer one."
    return min(expires_at, old_until)


def to_principal(key: StoredKey) -> Principal:
    """Who pays with this key."""
    return Principal(
        key_id=key.id,
        key_name=key.name,
        tenant=key.tenant,
        user=key.user,
        models=key.models,
        limits=Limits.from_table(key.limits),
        budget=None if key.budget is None else Budget.from_table(key.budget),
        tags=key.tags,
    )
