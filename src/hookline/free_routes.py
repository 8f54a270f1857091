"""Free routes: calls that no provider charges for.

Lives here: which those are. Elsewhere: what all others cost (money.py), who may make them without naming a model (catalog.py).
Idea: reading, deleting and storing are free; everything else is paid until a price says otherwise."""

from __future__ import annotations

FREE_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
FREE_PATHS = ("/v1/files", "/v1/uploads", "/v1/vector_stores")
VECTOR_STORES = "/v1/vector_stores/"
FREE_OF_VECTOR_STORES = ("files", "file_batches")


def is_free(method: str, path: str) -> bool:
    """GET, HEAD, DELETE; files, uploads and vector stores, but not searching them."""
    if method in FREE_METHODS:
        return True
    if not any(path == p or path.startswith(f"{p}/") for p in FREE_PATHS):
        return False
    if not path.startswith(VECTOR_STORES):
        return True
    if "%" in path or path.rstrip("/").endswith(
        "/search"
    ):  # no id needs quoting, and "search" may be spelled in many ways
        return False
    _, _, what = path.removeprefix(VECTOR_STORES).partition("/")
    return not what or what.split("/")[0] in FREE_OF_VECTOR_STORES
