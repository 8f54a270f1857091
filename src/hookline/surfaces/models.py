"""`GET /v1/models` and `/v1/models/{id}`.

Lives here: the list (own names, then what the default provider lists, as far as the caller may use them), one own model. Elsewhere:
what names mean (catalog.py), a model that only a provider knows (an ordinary call).
Idea: they are calls like any other, through the whole chain; only their answer is made or completed here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson
from multidict import CIMultiDict

from hookline.call import Call
from hookline.errors import NotFound
from hookline.paths import decode, fold
from hookline.reply import Reply
from hookline.surfaces.settings import Deliver, NamesModels

PATH: Final = "/v1/models"


def is_models_path(path: str) -> bool:
    return (fold(path) + "/").startswith(PATH + "/")


def prepare_models_call(call: Call, catalog: NamesModels, deliver: Deliver) -> Deliver:
    """Make `call` answer from the catalog, as far as it can; returns the `deliver` to run it with."""
    call.endpoint = "models"
    path = decode(call.path)
    name = path[path.lower().index("models") + len("models") :].strip("/")
    if name and name not in catalog.model_names():
        call.model = name
        return deliver
    if name:
        call.local = _OwnModel(name, catalog)
    elif catalog.default_provider is None:
        call.local = _OwnList(catalog)
    else:
        return _MergedList(call, catalog, deliver)
    return deliver


class _OwnModel:
    """Answers for one name in `[models]`; as `Call.local`."""

    def __init__(self, name: str, catalog: NamesModels) -> None:
        self._name, self._catalog = name, catalog

    async def __call__(self, call: Call) -> Reply:
        if not self._catalog.is_allowed(call.principal, self._name):
            raise NotFound("this model does not exist, or you may not use it", code="model_not_found", param="model")
        return _make_reply(_describe(self._name))


class _OwnList:
    """Answers with the names in `[models]`; as `Call.local`."""

    def __init__(self, catalog: NamesModels) -> None:
        self._catalog = catalog

    async def __call__(self, call: Call) -> Reply:
        return _make_reply(_list(_own_models(call, self._catalog)))


class _MergedList:
    """A `deliver` that puts the own models before those the default provider lists."""

    def __init__(self, call: Call, catalog: NamesModels, deliver: Deliver) -> None:
        self._call, self._catalog, self._deliver = call, catalog, deliver

    async def __call__(self, reply: Reply) -> None:
        if reply.status != 200 and not self._call.attempts:
            await self._deliver(reply)  # refused by the gateway itself
            return
        own = _own_models(self._call, self._catalog)
        seen = {model["id"] for model in own}
        theirs = [
            {"object": "model", **model}
            for model in _find_listed(reply)
            if model["id"] not in seen and self._catalog.is_allowed(self._call.principal, model["id"])
        ]
        merged = _make_reply(_list(own + theirs))
        merged.headers.extend((name, value) for name, value in reply.headers.items() if name.startswith("x-hookline-"))
        await self._deliver(merged)


def _own_models(call: Call, catalog: NamesModels) -> list[dict[str, Any]]:
    return [_describe(name) for name in catalog.model_names() if catalog.is_allowed(call.principal, name)]


def _find_listed(reply: Reply) -> Iterable[dict[str, Any]]:
    """What an upstream lists; nothing if it failed or said something else: the own models are still true then."""
    listed = reply.json() if reply.status == 200 else None
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list):
        return []
    return [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]


def _describe(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "hookline"}


def _list(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": models}


def _make_reply(value: dict[str, Any]) -> Reply:
    return Reply(200, CIMultiDict({"content-type": "application/json"}), orjson.dumps(value), source="local")
