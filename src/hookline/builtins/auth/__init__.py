"""Auth: who calls.

Lives here: the plugin, and the order in which a caller is looked for: keys of proxy.toml, virtual keys in `records`, tokens. Elsewhere: virtual keys as this process
knows them (recorded_keys.py), tokens (tokens.py), `/admin/keys` (admin_keys.py), `hookline keys` (commands.py), what a principal may use (the core checks `models`),
what it may spend (rate_limit, budget).
Idea: a key is known by the SHA-256 of its secret; a call of a known one costs one hash and one or two dict lookups. The lookup's timing tells about digests, which a
caller can't choose, and the comparison is constant in time. There is no memo from header to Principal: it would save half a microsecond and keep every
key that was ever sent in plain memory.

Who is let in without a key
- Everyone, while proxy.toml holds no key and no issuer, `records` is known never to have held a key (revoked ones count), and others can't reach this host
  (or `[server] open`). Where `records` can't be read, nobody knows, and the answer is 503.
- Everyone, with `[plugins.auth] open = true`."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import NamedTuple

from hookline import (
    ANONYMOUS,
    END_USER,
    KEY_REFUSAL,
    AddCommand,
    AddRoute,
    AddWorker,
    Call,
    Host,
    KeyStore,
    NotFound,
    Principal,
    Rejected,
    StartupError,
    StoredKey,
    Unauthenticated,
    Unavailable,
    hookimpl,
)
from hookline.builtins.auth.admin_keys import AdminKeys
from hookline.builtins.auth.credentials import cannot_tell, find_key, refusal
from hookline.builtins.auth.end_user import DAY_S, PayingUsers, find_end_user
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.builtins.auth.options import AuthOptions
from hookline.builtins.auth.recorded_keys import SECRET_PREFIX, RecordedKeys, judge, to_principal
from hookline.builtins.auth.tokens import Tokens

__all__ = ["AuthOptions", "Plugin"]


class _Configured(NamedTuple):
    digest: bytes
    principal: Principal


class Plugin:
    """Vouches for callers whose key or token is known; while there is none at all, everyone is anonymous."""

    Options = AuthOptions
    has_model_options = False
    supports_dry_run = True

    def __init__(self, options: AuthOptions, host: Host) -> None:
        self._host = host
        host.offers[KEY_REFUSAL] = self._find_refusal
        self._configured: dict[bytes, _Configured] = {}
        for table in options.keys:
            digest = sha256(table.key.get_secret_value().encode()).digest()
            self._configured[digest] = _Configured(digest, table.to_principal())
        self._is_always_open = options.open
        self._may_open = not options.keys and not options.issuers
        self._tokens = Tokens(options.issuers, host) if options.issuers else None
        self._recorded: RecordedKeys | None = None
        self._desk = KeyDesk(self._find_store, host.clock, frozenset(table.name for table in options.keys))
        self._end_user_header = options.end_user_header
        self._paying = PayingUsers(options.end_users_per_key) if options.end_user_pays else None
        self._lookups = host.metrics.counter(
            "hookline_key_lookups_total", "Keys that had to be looked for in records, by what was found.", ("result",)
        )

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        AdminKeys(self._desk, self._host, self._refresh).register(add)

    @hookimpl
    def register_commands(self, add: AddCommand) -> None:
        from hookline.builtins.auth.commands import make_commands  # typer is for the command line only

        add("keys", make_commands(self._desk))

    @hookimpl
    def register_workers(self, add: AddWorker) -> None:
        add("follow the changes of keys", self._watch)
        if self._tokens is not None:
            add("keep the issuers' keys fresh", self._tokens.keep_fresh)

    async def start(self) -> None:
        """Raises StartupError where others can reach this host and nobody would be asked for a key."""
        if self._tokens is not None:
            self._tokens.begin()
        store: KeyStore | None = getattr(self._host.records, "keys", None)  # another's store of records may keep none
        if store is not None:
            self._recorded = RecordedKeys(store, self._host, self._lookups)
            await self._recorded.refresh()
        server = self._host.settings["server"]
        if server.get("is_loopback", True) or server.get("open") or self._is_always_open or not self._may_open:
            return
        self._may_open = False
        if self._recorded is not None and self._recorded.has_held_keys is False:
            raise StartupError(
                [
                    f"[server] host: {server.get('host')} can be reached by others, and nobody is asked for a key; make one by "
                    "`hookline keys create`, or add [[plugins.auth.keys]], or `open = true` to [server] to serve everyone"
                ]
            )

    async def stop(self) -> None:
        if self._recorded is not None:
            await self._recorded.aclose()
        if self._tokens is not None:
            await self._tokens.aclose()

    async def find_principal(self, key: str) -> Principal | None:
        """Who calls with the key of this name or id; None if nobody does. Raises ApiError where records can't answer, or the name is that of several."""
        for known in self._configured.values():
            if known.principal.key_name == key:
                return known.principal
        found = await self._find_recorded(key)
        return None if found is None else to_principal(found)

    @hookimpl
    async def authenticate(self, call: Call) -> Principal | None:
        key = find_key(call.headers)
        if key is None:
            return self._admit_without_key(call)
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        known = self._configured.get(digest)
        if known is not None and hmac.compare_digest(known.digest, digest):
            return known.principal
        recorded, tokens = self._recorded, self._tokens
        if recorded is not None:
            found = recorded.find(digest, call.started_at, call.started_time)
            if found is not None:
                return found
        if tokens is not None and key.count(".") == 2:
            return tokens.find(digest, call.started_time) or await self._verify(call, tokens, key, digest)
        return await self._look_up(call, key, digest)

    @hookimpl
    def prepare(self, call: Call) -> None:
        end_user = find_end_user(call, self._end_user_header)
        if end_user is not None:
            call[END_USER] = end_user
            if self._paying is not None and call.principal.user is None:
                call.principal = self._paying.find(call.principal, end_user, int(call.started_time // DAY_S))

    def _admit_without_key(self, call: Call) -> Principal:
        recorded = self._recorded
        if self._is_always_open:
            return ANONYMOUS
        if self._may_open:
            if recorded is None or recorded.has_held_keys is False:
                return ANONYMOUS
            if recorded.has_held_keys is None:
                raise Rejected(cannot_tell("the gateway's records can't be read"))
        raise Rejected(refusal(call.headers, None))

    async def _verify(self, call: Call, tokens: Tokens, token: str, digest: bytes) -> Principal:
        try:
            return await call.wait(tokens.verify(token, digest))  # bounded by the issuer's `timeout_s`
        except Unavailable as error:
            raise Rejected(error) from error

    async def _look_up(self, call: Call, key: str, digest: bytes) -> Principal:
        """Whose key it is; for what can't be a virtual key, `records` is asked only where nobody knows whether it ever held one."""
        recorded = self._recorded
        found: Principal | str | None = None
        if recorded is not None and (key.startswith(SECRET_PREFIX) or not recorded.is_fresh(call.started_at)):
            try:
                found = await call.wait(recorded.look_up(digest))  # bounded by ANSWER_S
            except Unavailable as error:
                if key.startswith(SECRET_PREFIX) or not self._is_open():
                    raise Rejected(error) from error
        if isinstance(found, Principal):
            return found
        if found is None and self._is_open():
            return ANONYMOUS
        raise Rejected(refusal(call.headers, key, found))

    def _is_open(self) -> bool:
        recorded = self._recorded
        return self._is_always_open or (self._may_open and (recorded is None or recorded.has_held_keys is False))

    async def _find_refusal(self, key: str) -> Unauthenticated | None:
        if any(known.principal.key_name == key for known in self._configured.values()):
            return None
        found = await self._find_recorded(key)
        why = None if found is None else judge(found, found.hash, self._host.clock.time())
        return refusal({}, key, why) if isinstance(why, str) else None

    async def _find_recorded(self, key: str) -> StoredKey | None:
        try:
            return await self._desk.get_named(key)
        except NotFound:
            return None

    def _find_store(self) -> KeyStore:
        return self._host.records.keys

    async def _refresh(self) -> None:
        if self._recorded is not None:
            await self._recorded.refresh()

    async def _watch(self) -> None:
        if self._recorded is not None:
            await self._recorded.watch()
