"""What one tenant can get of another's, with the official SDK and with raw HTTP: nothing, and nothing of the attempt reaches an upstream."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from hookline.testing.upstream import json_reply

USER: Any = [{"role": "user", "content": "hi"}]


async def make_all(client: openai.AsyncOpenAI) -> dict[str, str]:
    """One of everything, by its way through the SDK: id by name."""
    made: dict[str, str] = {}
    line = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": USER}})
    made["file"] = (await client.files.create(file=("f.jsonl", line.encode()), purpose="batch")).id
    made["upload"] = (
        await client.uploads.create(bytes=1, filename="f", mime_type="text/plain", purpose="assistants")
    ).id
    made["part"] = (await client.uploads.parts.create(made["upload"], data=b"x")).id
    made["batch"] = (
        await client.batches.create(
            input_file_id=made["file"], endpoint="/v1/chat/completions", completion_window="24h"
        )
    ).id
    made["vector_store"] = (await client.vector_stores.create(file_ids=[made["file"]])).id
    made["store_file"] = (await client.vector_stores.files.create(made["vector_store"], file_id=made["file"])).id
    made["file_batch"] = (
        await client.vector_stores.file_batches.create(made["vector_store"], file_ids=[made["file"]])
    ).id
    made["job"] = (await client.fine_tuning.jobs.create(model="gpt-4o", training_file=made["file"])).id
    made["conversation"] = (await client.conversations.create()).id
    response = await client.responses.create(model="gpt-4o", input="hi", conversation=made["conversation"])
    made["response"], made["item"] = response.id, response.output[0].id
    made["completion"] = (await client.chat.completions.create(model="gpt-4o", messages=USER, store=True)).id
    made["assistant"] = (await client.beta.assistants.create(model="gpt-4o")).id
    made["thread"] = (await client.beta.threads.create()).id
    made["message"] = (await client.beta.threads.messages.create(made["thread"], role="user", content="hi")).id
    made["run"] = (await client.beta.threads.runs.create(made["thread"], assistant_id=made["assistant"])).id
    made["container"] = (await client.containers.create(name="c")).id
    made["container_file"] = (await client.containers.files.create(made["container"], file_id=made["file"])).id
    made["eval"] = (
        await client.evals.create(data_source_config={"type": "custom", "item_schema": {}}, testing_criteria=[])
    ).id
    made["video"] = (await client.videos.create(prompt="p")).id
    made["skill"] = (await client.skills.create(files=[("a.md", b"x")])).id
    made["voice"] = (await client.post("/audio/voices", cast_to=dict, body={"name": "v"}))["id"]
    made["agent"] = (await client.post("/agents", cast_to=dict, body={"name": "a"}))["id"]
    made["output_file"] = (await client.batches.retrieve(made["batch"])).output_file_id or ""
    made["model"] = (await client.fine_tuning.jobs.retrieve(made["job"])).fine_tuned_model or ""
    return made


def steps_to_read(client: openai.AsyncOpenAI, its: dict[str, str]) -> dict[str, Any]:
    """Every way to read, use, change and delete what `its` names, as functions."""
    c, i = client, its
    use: dict[str, Any] = {
        "GET file": lambda: c.files.retrieve(i["file"]),
        "GET file content": lambda: c.files.content(i["file"]),
        "GET output": lambda: c.files.content(i["output_file"]),
        "POST part": lambda: c.uploads.parts.create(i["upload"], data=b"x"),
        "complete upload": lambda: c.uploads.complete(i["upload"], part_ids=[]),
        "GET batch": lambda: c.batches.retrieve(i["batch"]),
        "cancel batch": lambda: c.batches.cancel(i["batch"]),
        "use file in a batch": lambda: c.batches.create(
            input_file_id=i["file"], endpoint="/v1/responses", completion_window="24h"
        ),
        "GET store": lambda: c.vector_stores.retrieve(i["vector_store"]),
        "search store": lambda: c.vector_stores.search(i["vector_store"], query="x"),
        "list store files": lambda: c.vector_stores.files.list(i["vector_store"]),
        "change store": lambda: c.vector_stores.update(i["vector_store"], name="x"),
        "store of file": lambda: c.vector_stores.create(file_ids=[i["file"]]),
        "GET job": lambda: c.fine_tuning.jobs.retrieve(i["job"]),
        "job events": lambda: c.fine_tuning.jobs.list_events(i["job"]),
        "tune on file": lambda: c.fine_tuning.jobs.create(model="gpt-4o", training_file=i["file"]),
        "GET response": lambda: c.responses.retrieve(i["response"]),
        "stream response": lambda: c.responses.retrieve(i["response"], stream=True),
        "response items": lambda: c.responses.input_items.list(i["response"]),
        "cancel response": lambda: c.responses.cancel(i["response"]),
        "go on": lambda: c.responses.create(model="gpt-4o", input="?", previous_response_id=i["response"]),
        "go on in conversation": lambda: c.responses.create(model="gpt-4o", input="?", conversation=i["conversation"]),
        "go on in conversation object": lambda: c.responses.create(
            model="gpt-4o", input="?", conversation={"id": i["conversation"]}
        ),
        "item reference": lambda: c.responses.create(
            model="gpt-4o", input=[{"type": "item_reference", "id": i["item"]}]
        ),
        "file in prompt": lambda: c.responses.create(
            model="gpt-4o", input=[{"role": "user", "content": [{"type": "input_file", "file_id": i["file"]}]}]
        ),
        "file in chat": lambda: c.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": i["file"]}}]}]
        ),
        "file search": lambda: c.responses.create(
            model="gpt-4o", input="?", tools=[{"type": "file_search", "vector_store_ids": [i["vector_store"]]}]
        ),
        "code container": lambda: c.responses.create(
            model="gpt-4o", input="?", tools=[{"type": "code_interpreter", "container": i["container"]}]
        ),
        "code files": lambda: c.responses.create(
            model="gpt-4o",
            input="?",
            tools=[{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [i["file"]]}}],
        ),
        "GET conversation": lambda: c.conversations.retrieve(i["conversation"]),
        "conversation items": lambda: c.conversations.items.list(i["conversation"]),
        "GET completion": lambda: c.chat.completions.retrieve(i["completion"]),
        "completion messages": lambda: c.chat.completions.messages.list(i["completion"]),
        "GET assistant": lambda: c.beta.assistants.retrieve(i["assistant"]),
        "run assistant": lambda: c.beta.threads.create_and_run(assistant_id=i["assistant"]),
        "assistant with store": lambda: c.beta.assistants.create(
            model="gpt-4o", tool_resources={"file_search": {"vector_store_ids": [i["vector_store"]]}}
        ),
        "thread messages": lambda: c.beta.threads.messages.list(i["thread"]),
        "thread run": lambda: c.beta.threads.runs.retrieve(i["run"], thread_id=i["thread"]),
        "thread steps": lambda: c.beta.threads.runs.steps.list(i["run"], thread_id=i["thread"]),
        "GET container file": lambda: c.containers.files.content.retrieve(
            i["container_file"], container_id=i["container"]
        ),
        "GET eval": lambda: c.evals.retrieve(i["eval"]),
        "GET video": lambda: c.videos.download_content(i["video"]),
        "remix video": lambda: c.videos.remix(i["video"], prompt="x"),
        "GET skill": lambda: c.skills.retrieve(i["skill"]),
        "use model": lambda: c.chat.completions.create(model=i["model"], messages=USER),
        "use model by provider": lambda: c.chat.completions.create(model="up/" + i["model"], messages=USER),
        "GET model": lambda: c.models.retrieve(i["model"]),
        "speak": lambda: c.post(
            "/audio/speech", cast_to=dict, body={"model": "m", "input": "x", "voice": {"id": i["voice"]}}
        ),
        "GET agent": lambda: c.get(f"/agents/{i['agent']}", cast_to=dict),
    }
    for after, listing in {
        "file": c.files.list, "batch": c.batches.list, "vector_store": c.vector_stores.list, "job": c.fine_tuning.jobs.list,
        "completion": c.chat.completions.list, "assistant": c.beta.assistants.list, "container": c.containers.list, "eval": c.evals.list,
    }.items():  # fmt: skip
        use[f"list after {after}"] = lambda listing=listing, after=after: listing(after=i[after])
    for name, delete in {
        "file": c.files.delete, "vector_store": c.vector_stores.delete, "response": c.responses.delete, "conversation": c.conversations.delete,
        "completion": c.chat.completions.delete, "assistant": c.beta.assistants.delete, "thread": c.beta.threads.delete,
        "container": c.containers.delete, "eval": c.evals.delete, "video": c.videos.delete, "skill": c.skills.delete, "model": c.models.delete,
    }.items():  # fmt: skip
        use[f"delete {name}"] = lambda delete=delete, name=name: delete(i[name])
    return use


async def told(step: Any) -> tuple[int, Any]:
    """The status and error that a step of the SDK ends with; (200, None) if it works."""
    try:
        await step()
    except openai.APIStatusError as error:
        return error.status_code, error.body
    return 200, None


async def test_no_escape_by_the_sdk(serve, sdk, upstream) -> None:
    proxy = await serve()
    owner, hostile = sdk(proxy, "acme"), sdk(proxy, "globex")
    its = await make_all(owner)
    missing = {name: id[:-3] + "999" for name, id in its.items()}
    steps, steps_to_nothing = steps_to_read(hostile, its), steps_to_read(hostile, missing)
    asked = len(upstream.requests)

    for name, step in steps.items():
        status, error = await told(step)
        assert (name, status) == (name, 404), error
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], bool(error["message"])) == ("invalid_request_error", True)
        nothing = await told(steps_to_nothing[name])
        for id, other in zip(its.values(), missing.values(), strict=True):
            error["message"] = error["message"].replace(id, other)
        assert (name, *nothing) == (name, 404, error), "another's must look like nobody's"

    assert [request.target for request in upstream.requests[asked:]] == []


async def test_the_owner_reads_uses_changes_and_deletes(serve, sdk) -> None:
    proxy = await serve()
    owner = sdk(proxy, "acme")

    its = await make_all(owner)

    for name, step in steps_to_read(owner, its).items():
        status, error = await told(step)
        assert status == 200 or "Keeper" in str(error) or (error or {}).get("message", "").startswith("no "), (
            name,
            status,
            error,
        )


async def test_lists_show_only_ones_own(serve, sdk, upstream) -> None:
    proxy = await serve()
    owner, hostile = sdk(proxy, "acme"), sdk(proxy, "globex")
    await make_all(owner)
    own = (await hostile.files.create(file=b"x", purpose="user_data")).id

    assert [file.id async for file in hostile.files.list()] == [own]
    for listing in (hostile.batches, hostile.vector_stores, hostile.fine_tuning.jobs, hostile.chat.completions, hostile.beta.assistants,
                    hostile.containers, hostile.evals, hostile.videos, hostile.skills):  # fmt: skip
        page = await listing.list()
        assert (page.data, page.has_more) == ([], False)
    assert [model.id async for model in hostile.models.list()] == ["gpt-4o"]
    assert len([model async for model in owner.models.list()]) == 2


@pytest.mark.parametrize("status", [200, 206, 300])
@pytest.mark.parametrize(
    "list_of",
    [
        lambda file: {"object": "list", "data": [file]},
        lambda file: {"object": "list", "data": [], "files": [file]},
        lambda file: {"object": "list", "data": [{"file": file}]},
        lambda file: {"object": "list", "data": [], "by_id": {file["id"]: file}},
        lambda file: [file],
        lambda file: {"files": [file]},
    ],
)
async def test_no_escape_by_a_list_of_another_shape(serve, sdk, ask, upstream, status, list_of) -> None:
    proxy = await serve()
    file = await sdk(proxy, "acme").files.create(file=b"x", purpose="user_data")
    upstream.play(json_reply(list_of({"id": file.id}), status=status))

    _, told = await ask(proxy, "globex", "GET", "/v1/files")

    assert file.id not in json.dumps(told)


async def test_pages_are_filled_from_behind_others_objects(serve, sdk, upstream) -> None:
    """250 of another tenant's files lie between one's own."""
    proxy = await serve()
    owner, other = sdk(proxy, "acme"), sdk(proxy, "globex")
    ids = []
    for _ in range(3):
        ids += [(await owner.files.create(file=b"x", purpose="user_data")).id for _ in range(2)]
        for _ in range(80):
            id = upstream._file()  # nobody's, for this gateway
            assert id
    await other.files.create(file=b"x", purpose="user_data")

    first = await owner.files.list(limit=3)
    raw = first.model_dump()

    assert ([file.id for file in first.data], raw["has_more"], raw["first_id"], raw["last_id"]) == (
        ids[:3],
        True,
        ids[0],
        ids[2],
    )
    assert [file.id async for file in owner.files.list(limit=3)] == ids


async def test_no_escape_by_spelling(serve, sdk, ask, upstream) -> None:
    proxy = await serve()
    file = (await sdk(proxy, "acme").files.create(file=b"secret", purpose="user_data")).id
    mine = (await sdk(proxy, "globex").files.create(file=b"mine", purpose="user_data")).id
    response = (await sdk(proxy, "acme").responses.create(model="gpt-4o", input="hi")).id
    asked = len(upstream.requests)
    encoded = "".join(f"%{ord(letter):02x}" for letter in file)
    paths = [
        f"/v1/files/{file}", f"/v1/Files/{file}", f"/v1/FILES/{file}/Content", f"/v1/%66iles/{file}", f"/v1/files/{encoded}",
        f"/v1//files//{file}", f"/v1/./files/./{file}", f"/v1/files/x/../{file}", f"/v1/files/{mine}/../{file}", f"/v1/files/{file}/",
        f"/v1/files/{file};x", f"/v1/files;x/{file}", f"/v1/files/{file}%20", f"/v1/files/{file}.", f"/v1/files%2f{file}",
        f"/v1/files/{file}%2fcontent", f"/v1/files/{mine}%2f{file}", f"/v1/files/{mine}/{file}", f"/v1/files/{file}%00", f"/v1/files/{file}%3f",
        f"/v1/files/{file.upper()}", f"/v1/files/%2566{file[1:]}", f"/v1/files?after={file}", f"/v1/files?after={encoded}", f"/v1/files?AFTER={file}",
        f"/v1/files?after={mine}&after={file}", f"/v1/files?after%5B%5D={file}", f"/v1/files/{mine}?file_id={file}", f"/v1/responses/{response}?stream=true",
        f"/v1/files?limit=1;after={file}", f"/v1/engines/ft:{file}/completions", f"/v1/engines/%66t%3A{file}/completions", f"/v1/vector_stores?x={file}", f"/v1/files/{file}%5c", f"/v1/models/ft:{file}", f"/v1/./%2e/files/{file}", f"/v1/x/%2e%2e/files/{file}",
    ]  # fmt: skip

    for path in paths:
        for method in ("GET", "DELETE", "POST", "HEAD", "PUT", "PATCH"):
            status, reply = await ask(proxy, "globex", method, path)
            assert status in (400, 403, 404), (method, path, status, reply)
            assert b"secret" not in (reply if isinstance(reply, bytes) else b"")

    assert upstream.requests[asked:] == []


async def test_no_escape_by_bodies(serve, sdk, ask, upstream) -> None:
    proxy = await serve()
    acme, globex = sdk(proxy, "acme"), sdk(proxy, "globex")
    file = (await acme.files.create(file=b"secret", purpose="user_data")).id
    mine = (await globex.files.create(file=b"mine", purpose="user_data")).id
    asked = len(upstream.requests)
    form = {"content-type": "multipart/form-data; boundary=b"}

    def part(name: str, value: str) -> str:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'

    large = part("model", "gpt-image-1") + part("prompt", "x" * (3 << 20)) + part("image[file_id]", file) + "--b--\r\n"
    bodies: list[tuple[str, Any, dict[str, str]]] = [
        ("/v1/responses", f'{{"model":"gpt-4o","input":[{{"file_id":"{file}","file_id":"{mine}"}}]}}', {}),
        ("/v1/responses", f'{{"model":"gpt-4o","input":[{{"file\\u005fid":"{file}"}}]}}', {}),
        ("/v1/chat/completions", f'{{"model":"gpt-4o","messages":[{{"content":[{{"FILE_ID":"{file}"}}]}}]}}', {}),
        ("/v1/images/edits", f'{{"model":"gpt-image-1","images":[{{"file_id":"{file}"}}]}}', {}),
        ("/v1/images/edits", f'{{"model":"gpt-image-1","image":"{file}"}}', {}),
        ("/v1/images/edits", part("model", "gpt-image-1") + part("image[file_id]", file) + "--b--\r\n", form),
        ("/v1/images/edits", large, form),
        ("/v1/videos", part("prompt", "x") + part("input_reference", json.dumps({"file_id": file})) + "--b--\r\n", form),
        ("/v1/videos", part("file_id", file + " " * 2000) + "--b--\r\n", form),
        ("/v1/vector_stores", f"file_ids[]={file}", {"content-type": "application/x-www-form-urlencoded"}),
        ("/v1/vector_stores", b"\xef\xbb\xbf" + json.dumps({"file_ids": [file]}).encode(), {"content-type": "text/plain"}),
        ("/v1/vector_stores", json.dumps([{"file_ids": [file]}]), {"content-type": "application/octet-stream"}),
        ("/v1/anything/new", json.dumps({"deep": [[{"er": {"document": file}}]]}), {}),
        ("/v1/messages", json.dumps({"model": "m", "messages": [{"content": [{"source": {"type": "file", "file_id": file}}]}]}), {}),
        ("/v1/evals", json.dumps({"data_source": {"source": {"type": "file_id", "id": file}}}), {}),
        ("/v1/responses", json.dumps({"model": "gpt-4o", "input": "x", "prompt": {"id": "pmpt_1"}}), {}),
    ]  # fmt: skip

    for path, body, headers in bodies:
        told_headers = {"content-type": "application/json", **headers}
        status, reply = await ask(proxy, "globex", "POST", path, data=body, headers=told_headers)
        assert status in (400, 404, 415), (path, body[:200], status, reply)

    assert upstream.requests[asked:] == []


async def test_no_escape_by_the_lines_of_a_batch(serve, sdk, upstream) -> None:
    """The provider runs them with its own key: they are read when they are uploaded, and only what was read may be run."""
    proxy = await serve()
    acme, globex = sdk(proxy, "acme"), sdk(proxy, "globex")
    file = (await acme.files.create(file=b"secret", purpose="user_data")).id
    content = [{"role": "user", "content": [{"type": "input_file", "file_id": file}]}]
    line = json.dumps({"custom_id": "1", "url": "/v1/responses", "body": {"input": content}}).encode()
    asked = len(upstream.requests)

    refused = await told(lambda: globex.files.create(file=line, purpose="batch"))
    assert upstream.requests[asked:] == []
    unread = (await globex.files.create(file=line, purpose="user_data")).id
    run = await told(
        lambda: globex.batches.create(input_file_id=unread, endpoint="/v1/responses", completion_window="24h")
    )

    assert (refused[0], run[0], run[1]["code"]) == (404, 400, "unread_batch_input")
    assert len(upstream.requests) == asked + 1


async def test_ids_of_streams_are_their_readers(serve, sdk) -> None:
    proxy = await serve()
    owner, hostile = sdk(proxy, "acme"), sdk(proxy, "globex")

    stream = await owner.responses.create(model="gpt-4o", input="hi", stream=True)
    events = [event async for event in stream]
    async with owner.beta.threads.create_and_run_stream(
        assistant_id=(await owner.beta.assistants.create(model="m")).id
    ) as run_stream:
        run = [event async for event in run_stream]
    chat = [
        chunk
        async for chunk in await owner.chat.completions.create(model="gpt-4o", messages=USER, stream=True, store=True)
    ]

    response, item = events[0].response.id, events[1].item.id
    thread, run_id = run[0].data.id, run[1].data.id
    assert [event.type for event in events] == ["response.created", "response.output_item.added", "response.completed"]
    assert (await owner.responses.retrieve(response)).id == response
    assert (await owner.responses.create(model="gpt-4o", input=[{"type": "item_reference", "id": item}])).id
    assert (await owner.beta.threads.runs.retrieve(run_id, thread_id=thread)).id == run_id
    assert (await owner.chat.completions.retrieve(chat[0].id)).id == chat[0].id
    for step in (
        lambda: hostile.responses.retrieve(response),
        lambda: hostile.responses.create(model="gpt-4o", input=[{"type": "item_reference", "id": item}]),
        lambda: hostile.beta.threads.retrieve(thread),
        lambda: hostile.chat.completions.retrieve(chat[0].id),
    ):
        assert (await told(step))[0] == 404


async def test_what_can_not_be_told_apart_is_withheld(serve, ask, upstream) -> None:
    proxy = await serve()

    for path in ("/v1/organization/admin_api_keys", "/v1/realtime/client_secrets", "/v1/webhook_endpoints", "/v1/chatkit/sessions",
                 "/v1/fine_tuning/checkpoints/ft:x/permissions", "/v1/projects/p/api_keys", "/v1/live/sessions"):  # fmt: skip
        for method in ("GET", "POST"):
            status, reply = await ask(proxy, "acme", method, path)
            assert (path, status, reply["error"]["code"]) == (path, 403, "stored_objects_not_shared")

    assert upstream.requests == []


async def test_a_cached_answer_is_of_its_tenant(serve, sdk, upstream) -> None:
    proxy = await serve()
    answers = {}
    for tenant in ("acme", "globex", "acme", "globex"):
        answers.setdefault(tenant, []).append(
            (await sdk(proxy, tenant).chat.completions.create(model="gpt-4o", messages=USER, temperature=0)).id
        )

    assert {tenant: len(set(ids)) for tenant, ids in answers.items()} == {"acme": 1, "globex": 1}
    assert len(upstream.requests) == 2
