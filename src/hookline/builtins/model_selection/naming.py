"""Naming: which model a name means, for whom.

Lives here: aliases and mappings. Elsewhere: who may use the model that comes out (catalog.py asks the key's `models` for that name), what it costs and which limits it draws on.
Idea: the request is rewritten in `prepare`, before anybody looks the name up. So permission, limits, prices, cache and ledger go by the model that is used, and a mapping gives
nobody a model that its key could not ask for by name."""

from __future__ import annotations

from collections.abc import Mapping as Table
from collections.abc import Sequence
from fnmatch import fnmatchcase

from hookline import Call
from hookline.builtins.model_selection.options import Mapping

NAMES_MAX = 2_000


class Naming:
    """Names of one configuration. `canonical_by_alias` are the aliases of `[models]`: a mapping of a model is one of its other names, too."""

    def __init__(
        self, aliases: Table[str, str], mappings: Sequence[Mapping], canonical_by_alias: Table[str, str]
    ) -> None:
        self._aliases = aliases
        self._canonical = {**canonical_by_alias, **aliases}
        self._mappings = tuple(mappings)
        self._known: dict[str, tuple[Mapping, ...]] = {}

    def find(self, call: Call) -> tuple[str, str] | None:
        """(the model it gets, why), or None: it gets what it asked for."""
        name = call.model
        if name is None or (call.payload is None and call.upload is None):
            return None
        if self._mappings:
            found = self._known.get(name)
            for mapping in self._find_mappings(name) if found is None else found:
                if mapping.includes(call.principal, call.tags):
                    return None if mapping.to == name else (mapping.to, "mapping")
        target = self._aliases.get(name)
        return None if target is None else (target, "alias")

    def _find_mappings(self, name: str) -> tuple[Mapping, ...]:
        """Those of a name or of the model that it is an alias of. Names come from clients."""
        canonical = self._canonical.get(name, name)
        if len(self._known) >= NAMES_MAX:
            self._known.clear()
        found = self._known[name] = tuple(
            mapping
            for mapping in self._mappings
            if canonical == self._canonical.get(mapping.model, mapping.model)
            or fnmatchcase(name, mapping.model)
            or fnmatchcase(canonical, mapping.model)
        )
        return found
