"""Upstream options: what every provider that dials out can be told in proxy.toml.

Lives here: address, keys, headers, timeouts, TLS, and their checks. Elsewhere: what one dialect adds (openai.py, azure.py, anthropic.py), who uses them (upstream.py).
Idea: secrets are `SecretStr`, so that no repr, no dump and no error of pydantic shows them; whatever can be wrong here is said at start, except a key whose
variable is not set: that is said when the provider is used, so that one proxy.toml serves people with different keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from hookline.transport import TlsOptions, serialize_headers

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class TlsTable(BaseModel):
    """`[providers.x.tls]`. Paths are PEM files, relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ca_file: str | None = Field(default=None, description="Replaces the system's certificate authorities.")
    client_cert: str | None = Field(default=None, description="Our certificate chain, for upstreams that ask for one.")
    client_key: str | None = Field(default=None, description="Its key, if not in the same file.")
    server_hostname: str | None = Field(
        default=None, description="Checked and sent as SNI instead of the host dialled."
    )
    verify: bool = Field(
        default=True, description="false = any certificate is accepted; for a laptop, never for a network."
    )

    def to_options(self) -> TlsOptions:
        return TlsOptions(**self.model_dump())


class UpstreamOptions(BaseModel):
    """What every provider that dials out understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base_url: str = Field(description="What stands in place of `/v1`: https://api.openai.com/v1")
    api_key: SecretStr | list[SecretStr] | None = Field(
        default=None,
        description="One key, or several: each is a deployment of its own then, `provider/model#1` and so on, and they take turns. None = no key is sent.",
    )
    headers: dict[str, SecretStr] = Field(default={}, description="Sent with every request, in place of the client's.")
    max_connections: int = Field(default=5000, ge=1, le=100_000)
    keepalive_s: Seconds = Field(default=60.0, description="How long an idle connection is kept.")
    connect_timeout_s: Seconds | None = Field(default=None, description="Older spelling of timeouts.connect_s.")
    first_byte_timeout_s: Seconds | None = Field(default=None, description="Older spelling of timeouts.first_byte_s.")
    idle_timeout_s: Seconds | None = Field(default=None, description="Older spelling of timeouts.idle_s.")
    write_timeout_s: Seconds = Field(default=30.0, description="Without progress while the upstream reads the request.")
    pool_timeout_s: Seconds = Field(default=5.0, description="Waiting for a free connection.")
    tls: TlsTable = TlsTable()

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address like https://api.openai.com/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user or password; use `api_key` or `headers`")
        if parts.query or parts.fragment:
            raise ValueError("must end with the path: no query, no fragment")
        if not value.isascii() or any(c <= " " for c in value):
            raise ValueError("must be ASCII without spaces; percent-encode the path, use punycode for the host")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("has a port that is no number from 1 to 65535") from None
        return value.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        serialize_headers((name.encode(), text.get_secret_value().encode()) for name, text in value.items())
        return value

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys as text, which may still hold `${NAME}`; empty if none is configured."""
        if self.api_key is None:
            return ()
        keys = self.api_key if isinstance(self.api_key, list) else [self.api_key]
        return tuple(key.get_secret_value() for key in keys)
