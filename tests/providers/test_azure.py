"""Azure's addresses and header."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hookline import Attempt, Call
from hookline.providers.azure import AzureOptions, make_azure
from hookline.testing.upstream import ScriptedUpstream, json_reply


@pytest.mark.parametrize(
    ("base", "version", "path", "model", "target"),
    [
        ("", None, "/v1/chat/completions", "m", "/openai/v1/chat/completions"),
        ("/openai", None, "/v1/chat/completions", "m", "/openai/v1/chat/completions"),
        ("/openai/v1", None, "/v1/files", "", "/openai/v1/files"),
        ("/openai/v1/", "preview", "/v1/responses", "m", "/openai/v1/responses?api-version=preview"),
        ("", "2024-10-21", "/v1/chat/completions", "my gpt", "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"),
        ("/openai", "2024-10-21", "/v1/embeddings", "e", "/openai/deployments/e/embeddings?api-version=2024-10-21"),
        ("", "2024-10-21", "/v1/audio/speech", "tts", "/openai/deployments/tts/audio/speech?api-version=2024-10-21"),
        ("", "2024-10-21", "/v1/images/generations", "i", "/openai/deployments/i/images/generations?api-version=2024-10-21"),
        ("", "2024-10-21", "/v1/files", "", "/openai/files?api-version=2024-10-21"),
        ("", "2024-10-21", "/v1/responses", "m", "/openai/responses?api-version=2024-10-21"),
        ("/gateway/tenant", "2024-10-21", "/v1/completions", "m", "/gateway/tenant/openai/deployments/m/completions?api-version=2024-10-21"),
    ],
)  # fmt: skip
async def test_paths(
    upstream: ScriptedUpstream, make_call: Callable[..., Call], make_attempt: Callable[..., Attempt],
    base: str, version: str | None, path: str, model: str, target: str,
) -> None:  # fmt: skip
    upstream.play(json_reply({}))
    options = AzureOptions(base_url=f"http://127.0.0.1:{upstream.port}{base}", api_version=version, api_key="k")  # type: ignore[arg-type]
    provider = make_azure("up", options)

    await provider.send(make_call({"model": model}, path=path), make_attempt(model))
    await provider.aclose()

    [request] = upstream.requests
    assert request.target == target
    assert (request.header("api-key"), request.header("authorization")) == ("k", None)


@pytest.mark.parametrize(
    ("query", "expected"), [("a=1", "?a=1&api-version=v1"), ("api-version=mine", "?api-version=mine")]
)
async def test_the_clients_query_is_kept_and_its_version_wins(
    upstream: ScriptedUpstream, make_call: Callable[..., Call], make_attempt: Callable[..., Attempt],
    query: str, expected: str,
) -> None:  # fmt: skip
    upstream.play(json_reply({}))
    provider = make_azure("up", AzureOptions(base_url=f"http://127.0.0.1:{upstream.port}", api_version="v1"))

    await provider.send(make_call(query=query), make_attempt())
    await provider.aclose()

    assert upstream.requests[0].target == "/openai/deployments/m/chat/completions" + expected
