"""Labels of metrics that clients can name: bounded.

Lives here: `Labels`. Elsewhere: the metrics (metrics_registry.py).
Idea: deployments of a default provider have no end; the first ones keep their names, all others are one."""

from __future__ import annotations

LABELS_MAX = 1_000


class Labels:
    """Answers a name for itself while there is room, else "other"."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._known or len(self._known) < LABELS_MAX:
            self._known.add(name)
            return name
        return "other"
