"""An upstream that keeps objects, as providers do: whoever has its key sees all of them. Gateways before it, with keys of two tenants."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import aiohttp
import openai
import pytest
from yarl import URL

from hookline.app import App
from hookline.config_loading import load
from hookline.launch import open_listener
from hookline.testing.upstream import RecordedRequest, Script, ScriptedUpstream, bytes_reply, json_reply, sse_reply

ACTIONS = {"cancel", "complete", "pause", "resume", "submit_tool_outputs", "search", "remix"}
PREFIXES = {"files": "file-", "vector_stores": "vs_", "fine_tuning/jobs": "ftjob-", "chat/completions": "chatcmpl-", "batches": "batch_",
            "responses": "resp_", "conversations": "conv_", "threads": "thread_", "assistants": "asst_", "containers": "cntr_"}  # fmt: skip
STATIC = re.compile(
    r"(fine_tuning/jobs|chat/completions|audio/voice_consents|audio/voices|videos/characters|messages/batches|agents/\w+)"
)


class Keeper(ScriptedUpstream):
    """Makes, lists, shows, changes and deletes whatever it is asked for."""

    def __init__(self, name: str = "up") -> None:
        super().__init__()
        self.name = name
        self.objects: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self.always(self.answer)

    def new_id(self, collection: str) -> str:
        prefix = PREFIXES.get(collection, collection.rpartition("/")[2].rstrip("s") + "_")
        return f"{prefix}{self.name}{next(self._numbers):012d}"

    def answer(self, request: RecordedRequest) -> Script:
        raw, _, query = request.target.partition("?")
        path = unquote(raw).removeprefix("/v1/").strip("/")
        is_json = (request.header("content-type") or "").startswith("application/json")
        body = json.loads(request.body) if is_json and request.body else {}
        if path == "models":
            names = ["gpt-4o", *(o["id"] for o in self.objects.values() if o["id"].startswith("ft:"))]
            return json_reply({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        if request.method == "POST":
            return self._post(path, body, request)
        if request.method == "DELETE":
            gone = self.objects.pop(path, None)
            return json_reply({"id": gone["id"], "deleted": True}) if gone else _missing(path)
        if path in self.objects:
            return json_reply(self.objects[path])
        parent, _, last = path.rpartition("/")
        if last == "content" and parent in self.objects:
            return bytes_reply(self.contents.get(parent, b"secret"), headers={"content-type": "text/plain"})
        return self._list(path, query)

    def _list(self, path: str, query: str) -> Script:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        found = [
            o for key, o in self.objects.items() if key.rpartition("/")[0] == path and not o["id"].startswith("ft:")
        ]
        ids = [o["id"] for o in found]
        if asked.get("after") in ids:
            found = found[ids.index(asked["after"]) + 1 :]
        page = found[: int(asked.get("limit", 20))]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return json_reply({"object": "list", "data": page, **ends, "has_more": len(page) < len(found)})

    def _post(self, path: str, body: dict[str, Any], request: RecordedRequest) -> Script:
        parent, _, last = path.rpartition("/")
        if path in self.objects:
            self.objects[path] |= body
            return json_reply(self.objects[path])
        if last in ACTIONS and parent in self.objects:
            return json_reply(self.objects[parent] if last != "search" else {"object": "list", "data": []})
        if path in ("chat/completions", "responses", "threads/runs"):
            return self._reply(path, body)
        made = {**body, "id": self.new_id(path), "object": path, "status": "completed"}
        if path == "batches":
            made |= {"output_file_id": self._file(), "error_file_id": self._file()}
        if path == "fine_tuning/jobs":
            model = f"ft:gpt-4o:org::{next(self._numbers)}"
            self.objects[f"models/{model}"] = {"id": model, "object": "model"}
            made |= {"result_files": [self._file()], "fine_tuned_model": model, "organization_id": "org-1"}
        self.objects[f"{path}/{made['id']}"] = made
        if path == "files":
            self.contents[f"files/{made['id']}"] = request.body
        return json_reply(made)

    def _file(self) -> str:
        id = self.new_id("files")
        self.objects[f"files/{id}"] = {"id": id, "object": "file", "purpose": "batch_output"}
        return id

    def _reply(self, path: str, body: dict[str, Any]) -> Script:
        if path == "chat/completions":
            made = {"id": self.new_id(path), "object": "chat.completion", "model": body["model"], "created": 1,
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ho"}}]}  # fmt: skip
            if body.get("store"):
                self.objects[f"{path}/{made['id']}"] = made
            if body.get("stream"):
                chunk = {
                    **made,
                    "object": "chat.completion.chunk",
                    "choices": [{"index": 0, "delta": {"content": "ho"}, "finish_reason": "stop"}],
                }
                return sse_reply(json.dumps(chunk), "[DONE]")
            return json_reply(made)
        if path == "threads/runs":
            thread = {"id": self.new_id("threads"), "object": "thread"}
            run = {"id": self.new_id("runs"), "object": "thread.run", "thread_id": thread["id"], "status": "completed"}
            self.objects |= {f"threads/{thread['id']}": thread, f"threads/{thread['id']}/runs/{run['id']}": run}
            if body.get("stream"):
                return sse_reply(*(_event(kind, value) for kind, value in (("thread.created", thread), ("thread.run.created", run))),
                                 b"event: done\ndata: [DONE]\n\n")  # fmt: skip
            return json_reply(run)
        item = {"id": self.new_id("messages"), "type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "ho", "annotations": []}]}  # fmt: skip
        made = {"id": self.new_id(path), "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
                "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        self.objects[f"{path}/{made['id']}"] = made
        if body.get("stream"):
            begun = {
                "type": "response.created",
                "sequence_number": 0,
                "response": {**made, "status": "in_progress", "output": []},
            }
            added = {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item}
            done = {"type": "response.completed", "sequence_number": 2, "response": made}
            return sse_reply(*(_event(event["type"], event) for event in (begun, added, done)))
        return json_reply(made)


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def _missing(path: str) -> Script:
    return json_reply(
        {"error": {"message": f"no {path}", "type": "invalid_request_error", "param": None, "code": None}}, status=404
    )


@pytest.fixture
async def upstream() -> AsyncIterator[Keeper]:
    async with Keeper() as upstream:
        yield upstream


@pytest.fixture
async def elsewhere() -> AsyncIterator[Keeper]:
    """Another provider's."""
    async with Keeper("elsewhere") as upstream:
        yield upstream


KEYS = "".join(
    f'[[plugins.auth.keys]]\nname = "{tenant}"\nkey = "sk-{tenant}"\ntenant = "{tenant}"\n'
    for tenant in ("acme", "globex")
)


class Gateway:
    """An app in this process, on a real socket, and the folder of its proxy.toml and records."""

    def __init__(self, app: App, folder: Path, port: int) -> None:
        self.app = app
        self.folder = folder
        self.base_url = f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        await self.app.stop(0)


Serve = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def serve(tmp_path: Path, upstream: Keeper, elsewhere: Keeper) -> AsyncIterator[Serve]:
    """Start a gateway: the default chain, two providers, what `more` adds, and the keys. The same folder is a restart."""
    gateways: list[Gateway] = []

    async def serve(more: str = "", *, keys: str = KEYS, folder: str = "gateway") -> Gateway:
        path = tmp_path / folder / "proxy.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'''
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
api_key = "k"
default = true
[providers.elsewhere]
kind = "openai"
base_url = "{elsewhere.url}"
api_key = "k"
[plugins.logging]
to = "{path.parent}/calls.log"
{more}
{keys}
''')
        app = App(load(path, {}))
        listener = open_listener("127.0.0.1", 0)
        port = listener.getsockname()[1]
        await app.start(listener)
        gateways.append(Gateway(app, path.parent, port))
        return gateways[-1]

    yield serve
    for gateway in gateways:
        await gateway.stop()


@pytest.fixture
async def sdk() -> AsyncIterator[Callable[[Gateway, str], openai.AsyncOpenAI]]:
    """The official SDK with a tenant's key."""
    clients: list[openai.AsyncOpenAI] = []

    def sdk(proxy: Gateway, tenant: str) -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key=f"sk-{tenant}", max_retries=0))
        return clients[-1]

    yield sdk
    for client in clients:
        await client.close()


@pytest.fixture
async def ask() -> AsyncIterator[Callable[..., Any]]:
    """Raw HTTP: (status, JSON) of a path that is sent as it is written."""
    async with aiohttp.ClientSession() as session:

        async def ask(proxy: Gateway, tenant: str, method: str, path: str, **options: Any) -> tuple[int, Any]:
            headers = {"authorization": f"Bearer sk-{tenant}", **options.pop("headers", {})}
            url = URL(proxy.base_url + path, encoded=True)
            async with session.request(method, url, headers=headers, **options) as reply:
                told = await reply.read()
                return reply.status, json.loads(told) if told[:1] in (b"{", b"[") else told

        yield ask
