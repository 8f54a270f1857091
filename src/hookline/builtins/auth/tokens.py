"""Tokens (JWT): another way in, beside keys.

Lives here: which issuer a token is from, what it must say, its claims as a Principal, tokens seen before. Elsewhere: public keys (key_set.py), options (options.py).
Idea: the issuer's table fixes the algorithms, and the key must be one for that algorithm, so a token never chooses how it is checked. A token that was found
good is known by its hash until it expires or the issuer's keys change, so it costs what a key costs."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple
from urllib.parse import quote

from hookline import Host, Limits, Principal, Rejected, StartupError
from hookline.builtins.auth.credentials import bad_token
from hookline.builtins.auth.key_set import KeySet
from hookline.builtins.auth.options import IssuerTable

TOKEN_CHARS_MAX = 16_384
TOKENS_MAX = 10_000
TEXT_MAX = 200
LIST_MAX = 100
_PLAIN_IN_NAMES = "@:|+ "
"""Issuers write these into subjects; what is left as it is reads better in logs."""


class _Known(NamedTuple):
    digest: bytes
    principal: Principal
    valid_until: float
    key_set: KeySet | None
    version: int


class Tokens:
    """The issuers of `[[plugins.auth.issuers]]`. Raises StartupError where what reads tokens is not installed."""

    def __init__(self, issuers: Sequence[IssuerTable], host: Host) -> None:
        try:
            import cryptography  # noqa: F401 - PyJWT finds it by itself, and without it knows no public keys
            import jwt
        except ImportError as error:
            raise StartupError(
                ["[[plugins.auth.issuers]] needs the extra `oidc`: pip install 'hookline[oidc]'"]
            ) from error
        self._jwt = jwt
        self._host = host
        self._issuers = {table.issuer: table for table in issuers}
        self._key_sets = {table.issuer: KeySet(table, host) for table in issuers if table.secret is None}
        self._known: dict[bytes, _Known] = {}

    def begin(self) -> None:
        """Begin with the public keys of the predecessor."""
        for key_set in self._key_sets.values():
            key_set.begin()

    def find(self, digest: bytes, now_unix: float) -> Principal | None:
        """Who has this token, if it was found good before and still is."""
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if now_unix >= known.valid_until or (known.key_set is not None and known.version != known.key_set.version):
            del self._known[digest]
            return None
        return known.principal

    async def verify(self, token: str, digest: bytes) -> Principal:
        """Who has this token. Raises Rejected: 401 for a bad one, 503 where its issuer's keys are not to be had."""
        header, issuer = self._peek(token)
        algorithm = header.get("alg")
        if algorithm not in issuer.fixed_algorithms:
            raise Rejected(bad_token("its algorithm is not one that this gateway takes from its issuer."))
        key_set = self._key_sets.get(issuer.issuer)
        version = 0
        if key_set is None:
            material: Any = issuer.secret.get_secret_value() if issuer.secret is not None else None
        else:
            kid = header.get("kid")
            found = await key_set.find(kid if isinstance(kid, str) else None, algorithm)
            if found is None:
                raise Rejected(bad_token("its issuer has no such key."))
            material, version = found.material, key_set.version
        claims = self._check(token, material, algorithm, issuer)
        principal = principal_of(claims, issuer)
        if len(self._known) >= TOKENS_MAX:
            del self._known[next(iter(self._known))]
        valid_until = float(claims["exp"]) + issuer.leeway_s
        self._known[digest] = _Known(digest, principal, valid_until, key_set, version)
        return principal

    async def keep_fresh(self) -> None:
        """Keep every issuer's keys fresh, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for key_set in self._key_sets.values():
                group.create_task(key_set.keep_fresh())

    async def aclose(self) -> None:
        for key_set in self._key_sets.values():
            await key_set.aclose()

    def _peek(self, token: str) -> tuple[Mapping[str, Any], IssuerTable]:
        """The header, and the issuer that the token says it is from: nothing of it is believed yet."""
        jwt = self._jwt
        try:
            if len(token) > TOKEN_CHARS_MAX:
                raise jwt.DecodeError
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Rejected(bad_token("it can't be read.")) from error
        issuer = claims.get("iss")
        table = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if table is None:
            raise Rejected(bad_token("its issuer is not one that this gateway knows."))
        return header, table

    def _check(self, token: str, material: Any, algorithm: str, issuer: IssuerTable) -> dict[str, Any]:
        jwt = self._jwt
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                material,
                algorithms=[algorithm],
                audience=issuer.audiences,
                issuer=issuer.issuer,
                leeway=issuer.leeway_s,
                options={"require": ["exp", "iss", "aud"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise Rejected(bad_token("it has expired.")) from None
        except jwt.ImmatureSignatureError:
            raise Rejected(bad_token("it is not valid yet.")) from None
        except jwt.InvalidAudienceError:
            raise Rejected(bad_token("it is meant for another audience.")) from None
        except jwt.MissingRequiredClaimError as error:
            raise Rejected(bad_token(f'it lacks the claim "{error.claim}".')) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise Rejected(bad_token("its signature or a claim is wrong.")) from None
        if not float(claims["exp"]) < inf:
            raise Rejected(bad_token("it never expires."))
        return claims


def principal_of(claims: Mapping[str, Any], issuer: IssuerTable) -> Principal:
    """What a token's claims make of its bearer. Raises Rejected(401) naming the claim that is not as it should be."""
    names = issuer.claims
    tenant = _text(claims, names.tenant) if names.tenant is not None else None
    if tenant is None and names.tenant is not None and issuer.tenant is None:
        raise Rejected(bad_token(f'it lacks the claim "{names.tenant}".'))
    user = _text(claims, names.user) if names.user is not None else None
    subject = user or _text(claims, "sub")
    models = _texts(claims, names.models)
    limits = issuer.model_dump()
    for name, claim in names.limits.items():
        limits[name] = _count(claims, claim) or limits[name]
    # A user belongs to a tenant, so two tenants' "ann" are two keys; quoted, so that neither can be made to mean the other.
    whose = "" if tenant is None else f"{quote(tenant, safe=_PLAIN_IN_NAMES)}/"
    who = whose + quote(subject or "", safe=_PLAIN_IN_NAMES)
    key = f"{issuer.name}:{who}" if who else issuer.name
    return Principal(
        key_id=key,
        key_name=key,
        tenant=tenant or issuer.tenant or "default",
        user=user,
        models=tuple(issuer.models) if models is None else models,
        limits=Limits.from_table(limits),
        budget=None if issuer.budget is None else issuer.budget.to_budget(),
        tags=_texts(claims, names.tags) or (),
    )


def _claim(claims: Mapping[str, Any], name: str | None) -> Any:
    """A claim by its name, which may hold dots; else the member it leads to."""
    if name is None or name in claims:
        return claims.get(name) if name is not None else None
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_MAX and value.isprintable()


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = _claim(claims, name)
    if value is None:
        return None
    if isinstance(value, str) and _is_plain(value):
        return value
    raise Rejected(bad_token(f'its claim "{name}" must be printable text, at most {TEXT_MAX} characters.'))


def _texts(claims: Mapping[str, Any], name: str | None) -> tuple[str, ...] | None:
    value = _claim(claims, name)
    if value is None:
        return None
    texts = value.split() if isinstance(value, str) else value
    if isinstance(texts, list) and len(texts) <= LIST_MAX and all(map(_is_plain, texts)):
        return tuple(texts)
    raise Rejected(bad_token(f'its claim "{name}" must be a list of at most {LIST_MAX} texts.'))


def _count(claims: Mapping[str, Any], name: str | None) -> int | None:
    value = _claim(claims, name)
    if value is None or (type(value) is int and 1 <= value <= 2**53):
        return value
    raise Rejected(bad_token(f'its claim "{name}" must be a whole number from 1 on.'))
