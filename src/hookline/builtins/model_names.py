"""Names of models in options: whether there is such a model.

Lives here: the one check that fallback, degradation, mirror and model_selection make at start. Elsewhere: what a name means for a call (catalog.py).
Idea: a misspelt model in a list is found by `hookline check`, not by the first outage that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from hookline import Host

Options = TypeVar("Options")


def is_unknown(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether no call can have this model. A default provider takes any name; where nobody said what there is (`Host.settings`), so does everybody."""
    if settings.get("default_provider", "") is not None or name in settings.get("models", ()):
        return False
    provider, _, model = name.partition("/")
    return provider not in settings.get("providers", ()) or not model


def unknown_models(
    options: Options, host: Host, named: Callable[[Options], Iterable[tuple[str, str]]]
) -> Iterator[str]:
    """A sentence for each model that there is not. In: the plugin's options; `named` answers (option, model) for one table of them, its own or one per model."""
    tables: dict[str, Options] = {f"plugins.{host.plugin}": options}
    tables |= {f'models."{name}".plugins.{host.plugin}': own for name, own in host.options_by_model.items()}
    for where, table in tables.items():
        for key, name in named(table):
            if is_unknown(name, host.settings):
                yield f'[{where}] {key}: model "{name}" does not exist; name one of [models], or "provider/model"'
