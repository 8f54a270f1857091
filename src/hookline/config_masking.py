"""Settings that may be shown: secrets replaced by `***`.

Lives here: which values are secret. Elsewhere: who shows settings (`Host.describe`, `hookline check`).
Idea: a value is secret by the name of its key, or because it came from the environment; showing too little is the safe mistake."""

from __future__ import annotations

import re
from typing import Any

from hookline.config_locator import Path
from hookline.config_source import Source

MASK = "***"
_SECRET_KEY = re.compile(r"(^|_)(key|keys|secret|secrets|token|password|authorization)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")


def masked(source: Source) -> dict[str, Any]:
    """The file's data with secrets masked."""
    shown = _mask(source.data, (), source, is_secret=False)
    assert isinstance(shown, dict)
    return shown


def _mask(value: Any, path: Path, source: Source, *, is_secret: bool) -> Any:
    if isinstance(value, dict):
        hides_all = bool(path) and path[-1] == "headers"
        return {
            key: _mask(item, (*path, key), source, is_secret=hides_all or bool(_SECRET_KEY.search(str(key))))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_mask(item, (*path, index), source, is_secret=is_secret) for index, item in enumerate(value)]
    if is_secret or path in source.expanded:
        return MASK
    return _URL_PASSWORD.sub(rf"\1:{MASK}@", value) if isinstance(value, str) else value
