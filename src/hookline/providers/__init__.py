"""Providers: the wire dialects that Hookline speaks to upstreams.

Lives here: the built-in kinds and their registration; `Bridged`, which is put around every provider, also a plugin's. Elsewhere: what a provider is (`Provider` in attempt.py), bytes on sockets (transport), who calls a provider (the pipeline, only it).
Idea: a kind is a factory with an options model, `factory(name, options, clock) -> Provider`, added by the same `register_providers(add)` that a plugin has. `name` is the table's
(`[providers.name]`), `options` the checked model, `clock` the process's clock. A factory does no I/O but reading files named in its options; it raises StartupError if they can't be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pydantic import BaseModel

from hookline.attempt import Provider
from hookline.providers.anthropic import AnthropicOptions, AnthropicProvider
from hookline.providers.azure import AzureOptions, make_azure
from hookline.providers.bridge import Bridged
from hookline.providers.demo import DemoOptions, DemoProvider
from hookline.providers.openai import OpenAIOptions, OpenAIProvider
from hookline.providers.upstream_options import UpstreamOptions

__all__ = ["Bridged", "UpstreamOptions", "register_providers"]


class AddProvider(Protocol):
    """What `register_providers` is given: the same as for plugins."""

    def __call__(self, kind: str, factory: Callable[..., Provider], *, options: type[BaseModel]) -> None: ...


def register_providers(add: AddProvider) -> None:
    """Add the built-in kinds."""
    add("openai", lambda name, options, clock: OpenAIProvider(name, options), options=OpenAIOptions)
    add("azure", lambda name, options, clock: make_azure(name, options), options=AzureOptions)
    add("anthropic", AnthropicProvider, options=AnthropicOptions)
    add("demo", DemoProvider, options=DemoOptions)
