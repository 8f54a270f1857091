"""`[plugins.auth]`: what may stand in it, and what the fields of a key are, wherever a key comes from.

Lives here: the tables. Elsewhere: keys as the admin API and the command line take them (key_fields.py), who is let in (__init__.py), what tokens must say (tokens.py).
Idea: strict, as everywhere: a misspelt limit is refused, never a limit that silently does not hold."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from hookline import BudgetTable, LimitTable, Principal, ScopedLimitTable

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")
SECRET_BYTES_MIN = 32


def _check_text(text: str) -> str:
    if not text.isprintable() or text.strip() != text:
        raise ValueError("must be printable text without spaces around it")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]


class Table(BaseModel):
    """Strict, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KeyTable(ScopedLimitTable):
    """One `[[plugins.auth.keys]]`."""

    name: str = Field(
        min_length=1, max_length=200, description="How logs, metrics and errors call it; the key itself is never shown."
    )
    key: SecretStr = Field(strict=False)
    tenant: str = Field("default", min_length=1, max_length=200)
    user: str | None = Field(None, min_length=1, max_length=200)
    models: list[str] = Field(["*"], description="Globs over the model names it may ask for.")
    budget: BudgetTable | None = None
    tags: list[Name] = Field([], max_length=50, description="For logs and ledgers.")

    @field_validator("key")
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text or not all("!" <= character <= "~" for character in text):
            raise ValueError("must be visible ASCII without spaces, or no header can carry it")
        return key

    def to_principal(self) -> Principal:
        return Principal(
            key_id=self.name,
            key_name=self.name,
            tenant=self.tenant,
            user=self.user,
            models=tuple(self.models),
            limits=self.to_limits(),
            budget=None if self.budget is None else self.budget.to_budget(),
            tags=tuple(self.tags),
        )


class ClaimsTable(Table):
    """`claims = { tenant = "org", user = "sub" }`: which claim of a token says what; "realm.roles" is the member of a claim."""

    tenant: str | None = Field(
        default=None, description="A token without it is refused, unless the issuer has a `tenant`."
    )
    user: str | None = "sub"
    models: str | None = Field(default=None, description="Globs: a list, or text with spaces between.")
    tags: str | None = None
    limits: dict[str, str] = Field(
        default={},
        description='As in { requests_per_minute = "rpm" }; a limit that the token does not name is the issuer\'s.',
    )

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, str]) -> dict[str, str]:
        for name in limits:
            if name not in LimitTable.model_fields:
                raise ValueError(f'there is no limit "{name}"; there are {", ".join(LimitTable.model_fields)}')
        return limits


class IssuerTable(ScopedLimitTable):
    """One `[[plugins.auth.issuers]]`: whose tokens (JWT) are taken as keys. Limits and budget are those of each user. The extra `oidc` brings what reads
    tokens."""

    name: str = Field(min_length=1, max_length=100, description="Begins the key's name in logs, metrics and scopes.")
    issuer: str = Field(min_length=1, description="What the claim `iss` must be, character by character.")
    audience: list[str] | str = Field(min_length=1, description="One of these must be in the claim `aud`.")
    jwks_url: str | None = Field(
        None, description="Where its public keys are; default: as ISSUER/.well-known/openid-configuration says."
    )
    secret: SecretStr | None = Field(
        None, strict=False, description="In place of public keys, for HS256, HS384 and HS512."
    )
    algorithms: list[str] = Field([], description='Default: ["RS256"]; with `secret`: ["HS256"].')
    claims: ClaimsTable = ClaimsTable()
    tenant: str | None = Field(None, min_length=1, max_length=200, description="For tokens that name none.")
    models: list[str] = Field(["*"], description="For tokens that name none.")
    budget: BudgetTable | None = None
    leeway_s: float = Field(0.0, ge=0, le=300, description="How far clocks may differ.")
    refresh_s: float = Field(300.0, ge=1, le=86_400, description="How often its public keys are fetched.")
    timeout_s: float = Field(3.0, gt=0, le=30)

    @model_validator(mode="after")
    def _check_keys(self) -> IssuerTable:
        allowed = ASYMMETRIC if self.secret is None else SYMMETRIC
        for algorithm in self.algorithms:
            if algorithm not in allowed:
                kind = "public keys" if self.secret is None else "a secret"
                raise ValueError(
                    f'algorithm "{algorithm}" is none that {kind} can check; there are {", ".join(allowed)}'
                )
        if self.secret is not None:
            if self.jwks_url is not None:
                raise ValueError("`secret` and `jwks_url`: keep one of them")
            if len(self.secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
                raise ValueError(f"`secret` must have {SECRET_BYTES_MIN} bytes or more, or it can be guessed")
            return self
        told = "jwks_url" if self.jwks_url is not None else "issuer"
        if not is_safe_url(self.jwks_url or self.issuer):
            raise ValueError(
                f"`{told}` must be an https:// URL without a password (http:// on this machine only): who answers it says whose tokens are good"
            )
        return self

    @property
    def fixed_algorithms(self) -> tuple[str, ...]:
        """The algorithms that its tokens may have."""
        return tuple(self.algorithms) or (("RS256",) if self.secret is None else ("HS256",))

    @property
    def audiences(self) -> list[str]:
        return [self.audience] if isinstance(self.audience, str) else self.audience


def is_safe_url(url: str) -> bool:
    """https://, or http:// to this machine; without a user's name or password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.username is not None or parts.password is not None:
        return False  # it would stand in the log
    if parts.scheme == "https":
        return bool(host)
    try:
        return parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


class AuthOptions(Table):
    """`[plugins.auth]`."""

    keys: list[KeyTable] = Field(
        [], description="Who may call. The first key closes the door for everyone without one."
    )
    issuers: list[IssuerTable] = Field([], max_length=20, description="Whose tokens are keys, too (OIDC).")
    open: bool = Field(False, description="Let callers without a known key in as anonymous, although there are keys.")
    end_user_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9-]+$",
        description="Names the end user of a call, before `safety_identifier` and `user` of the body.",
    )
    end_user_pays: bool = Field(
        False, description="Take the end user as the user of a key that has none: what a client claims is then charged."
    )
    end_users_per_key: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1_000, description="How many names of end users that pay a process takes from one key in a day (UTC)."
    )

    @model_validator(mode="after")
    def _check_duplicates(self) -> AuthOptions:
        names: set[str] = set()
        name_by_secret: dict[str, str] = {}
        for table in self.keys:
            if table.name in names:
                raise ValueError(f'two keys are named "{table.name}": give each a name of its own')
            names.add(table.name)
            other = name_by_secret.setdefault(table.key.get_secret_value(), table.name)
            if other != table.name:
                raise ValueError(f'"{other}" and "{table.name}" have the same key: remove one')
        for field in ("name", "issuer"):
            values = [getattr(table, field) for table in self.issuers]
            if len(set(values)) < len(values):
                raise ValueError(f"two issuers have the same `{field}`: give each its own")
        return self
