"""Demo objects: files, uploads, batches, vector stores and everything else that OpenAI's API stores.

Lives here: objects in memory, made, listed, read, changed and deleted by their paths. Elsewhere: answers that store nothing (demo_chat.py, demo_media.py), reading forms (demo_form.py).
Idea: the API's stored things are alike: POST on a collection makes one, GET lists or shows, POST on one changes it, DELETE removes it, and collections may lie below an object. So one table of
collections serves them all; only files (they have bytes) and batches (they run) have code of their own.

Bounded by `MAX_OBJECTS` and `MAX_CONTENT_BYTES`; beyond these the oldest go first."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import orjson

from hookline.providers.demo_behaviours import error_object
from hookline.providers.demo_form import Form

MAX_OBJECTS = 2000
MAX_CONTENT_BYTES = 64 << 20
MAX_BATCH_LINES = 1000


class Collection(NamedTuple):
    """What the objects of a collection are called and how their ids begin."""

    object: str
    prefix: str


COLLECTIONS: dict[str, Collection] = {
    "files": Collection("file", "file-"),
    "uploads": Collection("upload", "upload_"),
    "uploads/*/parts": Collection("upload.part", "part_"),
    "batches": Collection("batch", "batch_"),
    "vector_stores": Collection("vector_store", "vs_"),
    "vector_stores/*/files": Collection("vector_store.file", "file-"),
    "vector_stores/*/file_batches": Collection("vector_store.files_batch", "vsfb_"),
    "fine_tuning/jobs": Collection("fine_tuning.job", "ftjob-"),
    "fine_tuning/jobs/*/events": Collection("fine_tuning.job.event", "ftevent-"),
    "fine_tuning/jobs/*/checkpoints": Collection("fine_tuning.job.checkpoint", "ftckpt_"),
    "conversations": Collection("conversation", "conv_"),
    "conversations/*/items": Collection("conversation.item", "msg_"),
    "chat/completions": Collection("chat.completion", "chatcmpl-"),
    "assistants": Collection("assistant", "asst_"),
    "threads": Collection("thread", "thread_"),
    "threads/*/messages": Collection("thread.message", "msg_"),
    "threads/*/runs": Collection("thread.run", "run_"),
    "containers": Collection("container", "cntr_"),
    "containers/*/files": Collection("container.file", "cfile_"),
    "evals": Collection("eval", "eval_"),
    "evals/*/runs": Collection("eval.run", "evalrun_"),
}
"""Collections by path below /v1; `*` is an id."""

ACTIONS: dict[str, str] = {"cancel": "cancelled", "complete": "completed", "pause": "paused", "resume": "running"}
"""POST on `.../{id}/{action}` sets the object's status."""

RunLine = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]
"""(path, body) of one line of a batch -> (status, body)."""


class Found(NamedTuple):
    """An answer: JSON, or the bytes of a file."""

    status: int
    body: dict[str, Any] | bytes


class DemoObjects:
    """All that one demo provider stores."""

    def __init__(self, run_line: RunLine) -> None:
        self._run_line = run_line
        self._objects: dict[str, dict[str, Any]] = {}
        """By path, oldest first: a child's path begins with its parent's."""
        self._contents: dict[str, bytes] = {}
        self._content_bytes = 0
        self._numbers = count(1)
        self._run = f"{random.getrandbits(40):010x}"  # ids are never given twice, also not by the next process

    def handle(self, method: str, path: str, query: str, body: dict[str, Any] | Form, now: int) -> Found:
        """Answer a call on a stored thing; `path` is what follows /v1/."""
        path = unquote(path).strip("/")
        if method in ("GET", "HEAD"):
            return self._get(path, query)
        if method == "DELETE":
            return self._delete(path)
        if method != "POST":
            return _error(405, f"the demo knows GET, POST and DELETE on /v1/{path}")
        if path in self._objects:
            return self._change(path, body)
        parent, _, action = path.rpartition("/")
        if parent in self._objects and action in ACTIONS:
            return self._act(parent, action, body, now)
        collection = find_collection(path)
        if collection is None:
            return _error(404, f"the demo has no POST /v1/{path}")
        if path.count("/") >= 2 and parent not in self._objects:
            return _error(404, f"there is no /v1/{parent}")
        return self._make(path, collection, body, now)

    def _get(self, path: str, query: str) -> Found:
        if path in self._objects:
            return Found(200, self._objects[path])
        parent, _, last = path.rpartition("/")
        if last == "content" and parent in self._contents:
            return Found(200, self._contents[parent])
        if find_collection(path) is None or (path.count("/") >= 2 and parent not in self._objects):
            return _error(404, f"there is no /v1/{path}")
        return Found(200, self._list(path, query))

    def _list(self, path: str, query: str) -> dict[str, Any]:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        depth = path.count("/") + 1
        found = [o for key, o in self._objects.items() if key.startswith(path + "/") and key.count("/") == depth]
        if "purpose" in asked:
            found = [one for one in found if one.get("purpose") == asked["purpose"]]
        if asked.get("order") != "asc":
            found.reverse()
        ids = [one["id"] for one in found]
        if asked.get("after") in ids:
            found = found[ids.index(asked["after"]) + 1 :]
        limit = int(asked["limit"]) if asked.get("limit", "").isdigit() else 100
        shown = found[: max(1, limit)]
        ends = (
            {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        )
        return {"object": "list", "data": shown, **ends, "has_more": len(shown) < len(found)}

    def _delete(self, path: str) -> Found:
        removed = self._remove(path)
        if removed is None:
            return _error(404, f"there is no /v1/{path}")
        kind = removed["object"] if removed["object"] == "file" else f"{removed['object']}.deleted"
        return Found(200, {"id": removed["id"], "object": kind, "deleted": True})

    def _change(self, path: str, body: dict[str, Any] | Form) -> Found:
        given = body.fields if isinstance(body, Form) else body
        self._objects[path] |= {key: value for key, value in given.items() if key not in ("id", "object")}
        return Found(200, self._objects[path])

    def _act(self, path: str, action: str, body: dict[str, Any] | Form, now: int) -> Found:
        found = self._objects[path]
        found["status"] = ACTIONS[action]
        if found["object"] == "upload" and action == "complete":
            parts = body.get("part_ids", []) if isinstance(body, dict) else []
            content = b"".join(self._contents.get(f"{path}/parts/{part}", b"") for part in parts)
            found["file"] = self._store_file(str(found.get("filename")), str(found.get("purpose")), content, now)
        return Found(200, found)

    def _make(self, path: str, collection: Collection, body: dict[str, Any] | Form, now: int) -> Found:
        if path == "files":
            return self._make_file(body, now)
        fields = dict(body.fields if isinstance(body, Form) else body)
        new = {**fields, "id": self._new_id(collection), "object": collection.object, "created_at": now}
        new.setdefault("status", "pending" if path == "uploads" else "completed")
        content = body.files[0][2] if isinstance(body, Form) and body.files else None
        if path == "batches":
            source = self._contents.get(f"files/{fields.get('input_file_id')}")
            if source is None:
                return _error(400, '"input_file_id" must be the id of an uploaded file')
            new |= self._run_batch(source, now)
        self._keep(f"{path}/{new['id']}", new, content)
        return Found(200, new)

    def _make_file(self, body: dict[str, Any] | Form, now: int) -> Found:
        if not isinstance(body, Form) or not body.files:
            return _error(400, 'a file is uploaded as multipart/form-data with a part "file"')
        _, file_name, content = body.files[0]
        return Found(200, self._store_file(file_name, body.fields.get("purpose", "user_data"), content, now))

    def _store_file(self, file_name: str, purpose: str, content: bytes, now: int) -> dict[str, Any]:
        new = {
            "id": self._new_id(COLLECTIONS["files"]),
            "object": "file",
            "bytes": len(content),
            "created_at": now,
            "filename": file_name,
            "purpose": purpose,
            "status": "processed",
        }
        self._keep(f"files/{new['id']}", new, content)
        return new

    def _run_batch(self, source: bytes, now: int) -> dict[str, Any]:
        """A batch of the demo is done when it is made."""
        lines: list[bytes] = []
        failed = 0
        for number, line in enumerate(source.splitlines()[:MAX_BATCH_LINES]):
            try:
                asked = orjson.loads(line)
                status, answer = self._run_line(str(asked.get("url")), asked.get("body") or {})
                custom_id = asked.get("custom_id")
            except (orjson.JSONDecodeError, AttributeError):
                status, answer, custom_id = 400, error_object(400, f"line {number + 1} is no JSON object"), None
            failed += status >= 400
            response = {"status_code": status, "request_id": f"req_demo{number}", "body": answer}
            lines.append(
                orjson.dumps({"id": f"batch_req_{number}", "custom_id": custom_id, "response": response, "error": None})
            )
        output = self._store_file("output.jsonl", "batch_output", b"\n".join([*lines, b""]), now)
        counts = {"total": len(lines), "completed": len(lines) - failed, "failed": failed}
        times = {"in_progress_at": now, "completed_at": now, "expires_at": now + 86_400}
        return {"status": "completed", "output_file_id": output["id"], "request_counts": counts, **times}

    def _new_id(self, collection: Collection) -> str:
        return f"{collection.prefix}demo{self._run}{next(self._numbers):06}"

    def _keep(self, path: str, new: dict[str, Any], content: bytes | None) -> None:
        self._objects[path] = new
        if content is not None:
            self._contents[path] = content
            self._content_bytes += len(content)
        while len(self._objects) > MAX_OBJECTS:
            self._remove(next(iter(self._objects)))
        while self._content_bytes > MAX_CONTENT_BYTES:
            self._remove(next(iter(self._contents)))

    def _remove(self, path: str) -> dict[str, Any] | None:
        removed = self._objects.pop(path, None)
        self._content_bytes -= len(self._contents.pop(path, b""))
        return removed


def find_collection(path: str) -> Collection | None:
    """The collection at this path, with an id at every second place below the first."""
    known = COLLECTIONS.get(path)
    if known is not None:
        return known
    parts = path.split("/")
    return COLLECTIONS.get("/".join([*parts[:-2], "*", parts[-1]])) if len(parts) >= 3 else None


def _error(status: int, message: str) -> Found:
    return Found(status, error_object(status, message))
