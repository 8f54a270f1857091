"""Free routes: calls that no provider charges for.

Lives here: which those are. Elsewhere: what all others cost (money.py), who may make them without naming a model (catalog.py).
Idea: reading, deleting and storing are free; everything else is paid until a price says otherwise. A path is read as the most lenient server would, so that no
spelling of a paid one is free."""

from __future__ import annotations

from hookline.paths import fold

FREE_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
FREE_PATHS = ("/v1/files", "/v1/uploads", "/v1/vector_stores")
VECTOR_STORES = "/v1/vector_stores/"
FREE_OF_VECTOR_STORES = ("", "files", "file_batches")


def is_free(method: str, path: str) -> bool:
    """GET, HEAD, DELETE; files, uploads and vector stores, but not searching them."""
    if method in FREE_METHODS:
        return True
    path = fold(path)
    if not any(path == p or path.startswith(f"{p}/") for p in FREE_PATHS):
        return False
    if not path.startswith(VECTOR_STORES):
        return True
    _, _, what = path.removeprefix(VECTOR_STORES).partition("/")
    return what.partition("/")[0] in FREE_OF_VECTOR_STORES and not path.endswith("/search")
