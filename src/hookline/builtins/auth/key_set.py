"""The public keys of one issuer (JWKS).

Lives here: fetching them, keeping them, finding one for a token. Elsewhere: what a token must say (tokens.py), options (options.py).
Idea: keys are fetched every `refresh_s` by a task, and at once where a token names one that is not here, but that at most UNKNOWN_AT_ONCE times and then every
UNKNOWN_EVERY_S, for anybody can invent names, and an invented one must not keep a new key waiting. What was fetched last stays while the issuer can't be reached,
through reloads too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import inf
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import orjson

from hookline import Host, RecordStore
from hookline.builtins.auth.credentials import cannot_tell
from hookline.builtins.auth.options import IssuerTable, is_safe_url

UNKNOWN_EVERY_S = 10.0
UNKNOWN_AT_ONCE = 5
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 30.0
BYTES_MAX = 512 * 1024
KEYS_MAX = 100
ADDRESSES_MAX = 100
RSA_BITS_MIN = 2048
KINDS = {
    "RS256": ("RSA", None), "RS384": ("RSA", None), "RS512": ("RSA", None),
    "PS256": ("RSA", None), "PS384": ("RSA", None), "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", None),
}  # fmt: skip
"""Which keys an algorithm is for: `kty` and `crv`."""


class PublicKey(NamedTuple):
    """One key of a set. `material` is what PyJWT takes."""

    kid: str | None
    kty: str
    crv: str | None
    alg: str | None
    material: Any

    def fits(self, algorithm: str) -> bool:
        kty, crv = KINDS[algorithm]
        return self.kty == kty and self.alg in (None, algorithm) and crv in (None, self.crv)


_Address = tuple[str, str | None]
"""Issuer and `jwks_url`."""


class FetchError(Exception):
    """The issuer did not answer as it should."""


class KeySet:
    """Everything runs on the loop."""

    _fetched_by: ClassVar[WeakKeyDictionary[RecordStore, dict[_Address, tuple[PublicKey, ...]]]] = WeakKeyDictionary()
    """What was fetched last, per gateway (it has one store of records through all its reloads) and address."""

    def __init__(self, issuer: IssuerTable, host: Host) -> None:
        self._issuer = issuer
        self._host = host
        self._keys: tuple[PublicKey, ...] | None = None
        self._problem: str | None = "its keys were not fetched yet"
        self._fetching: asyncio.Task[None] | None = None
        self._asked_until = -inf
        """When all that was asked for unknown names is paid off, at one question per UNKNOWN_EVERY_S."""
        self.version = 0
        """Grows when keys have come or gone."""

    def begin(self) -> None:
        """Begin with what the predecessor fetched from the same address: the issuer may be away just now."""
        fetched = self._fetched()
        if (keys := fetched.get(self._address)) is not None:
            self._keys, self._problem = keys, None

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key that signed; None if the issuer has none such. Raises Unavailable where that can't be told."""
        if (found := self._find(kid, algorithm)) is not None:
            return found
        now = self._host.clock.monotonic()
        asked_until = max(self._asked_until, now) + UNKNOWN_EVERY_S
        if self._fetching is not None or asked_until <= now + UNKNOWN_AT_ONCE * UNKNOWN_EVERY_S:
            if self._fetching is None:
                self._asked_until = asked_until
            await self._fetch_once()
            if (found := self._find(kid, algorithm)) is not None:
                return found
        if self._problem is not None:
            raise cannot_tell(f'the issuer "{self._issuer.name}" can\'t be asked for its keys')
        return None

    async def keep_fresh(self) -> None:
        """Fetch again and again, until cancelled."""
        pause_s = RETRY_FIRST_S
        while True:
            await self._fetch_once()
            if self._problem is None:
                pause_s = RETRY_FIRST_S
                await asyncio.sleep(self._issuer.refresh_s)
            else:
                await asyncio.sleep(min(pause_s, self._issuer.refresh_s))
                pause_s = min(pause_s * 2, RETRY_MAX_S)

    def _fetched(self) -> dict[_Address, tuple[PublicKey, ...]]:
        records = self._host.records
        return {} if records is None else self._fetched_by.setdefault(records, {})

    @property
    def _address(self) -> _Address:
        return self._issuer.issuer, self._issuer.jwks_url

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        fitting = [key for key in self._keys or () if key.fits(algorithm) and kid in (None, key.kid)]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None

    async def _fetch_once(self) -> None:
        """Fetch, together with everybody who waits for the same; a caller who leaves does not end it."""
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="auth: fetch keys")
            self._fetching.add_done_callback(self._end_fetching)
        await asyncio.shield(self._fetching)

    def _end_fetching(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        """Never raises: what went wrong is kept as `_problem`."""
        import aiohttp

        issuer = self._issuer
        try:
            async with asyncio.timeout(issuer.timeout_s):
                url = issuer.jwks_url or await self._discover()
                keys = read_keys(await self._get(url))
        except (FetchError, TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            if self._problem is None or self._keys is None:
                self._host.log.warning('issuer "%s": its keys can\'t be fetched: %s', issuer.name, why[:300])
            self._problem = why
            return
        if self._problem is not None and self._keys is not None:
            self._host.log.warning('issuer "%s": its keys can be fetched again', issuer.name)
        self._problem = None
        if _names(keys) != _names(self._keys or ()) or self._keys is None:
            self.version += 1
        self._keys = keys
        fetched = self._fetched()
        fetched[self._address] = keys
        if len(fetched) > ADDRESSES_MAX:
            del fetched[next(iter(fetched))]

    async def _discover(self) -> str:
        issuer = self._issuer.issuer
        found = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = found.get("jwks_uri")
        if found.get("issuer") != issuer:
            raise FetchError("its openid-configuration names another issuer")
        if not isinstance(url, str) or not is_safe_url(url):
            raise FetchError("its openid-configuration has no `jwks_uri` that is safe to ask")
        return url

    async def _get(self, url: str) -> Mapping[str, Any]:
        async with self._host.http.get(url, allow_redirects=False, headers={"accept": "application/json"}) as response:
            if response.status != 200:
                raise FetchError(f"{url} answered with status {response.status}")
            body = bytearray()
            async for piece in response.content.iter_chunked(64 * 1024):
                body += piece
                if len(body) > BYTES_MAX:
                    raise FetchError(f"{url} answered with more than {BYTES_MAX} bytes")
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise FetchError(f"{url} did not answer with a JSON object")
        return value


def read_keys(jwks: Mapping[str, Any]) -> tuple[PublicKey, ...]:
    """The public keys of a set that may check signatures; all others are left out. Raises FetchError for what is no set."""
    import jwt

    listed = jwks.get("keys")
    if not isinstance(listed, list):
        raise FetchError("what it answers has no list `keys`")
    keys: list[PublicKey] = []
    for jwk in listed[:KEYS_MAX]:
        if not isinstance(jwk, dict) or jwk.get("kty") not in ("RSA", "EC", "OKP") or jwk.get("use", "sig") != "sig":
            continue
        alg, kid = jwk.get("alg"), jwk.get("kid")
        public = {name: value for name, value in jwk.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
        try:
            material = jwt.PyJWK.from_dict(public, algorithm=alg or _any_algorithm(jwk)).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        if jwk["kty"] == "RSA" and material.key_size < RSA_BITS_MIN:
            continue
        keys.append(PublicKey(kid if isinstance(kid, str) else None, jwk["kty"], jwk.get("crv"), alg, material))
    return tuple(keys)


def _any_algorithm(jwk: Mapping[str, Any]) -> str | None:
    return next(
        (name for name, (kty, crv) in KINDS.items() if kty == jwk["kty"] and crv in (None, jwk.get("crv"))), None
    )


def _names(keys: tuple[PublicKey, ...]) -> list[tuple[Any, ...]]:
    """What tells two sets apart."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return [
        (key.kid, key.alg, key.material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)) for key in keys
    ]
