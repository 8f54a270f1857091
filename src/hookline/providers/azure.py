"""Azure: the OpenAI wire at Azure's addresses.

Lives here: its header, its paths, its api-version. Elsewhere: everything else (openai.py).
Idea: there are two forms of address, and the option `api_version` says which: with it the classic one, where the model's name is a deployment in the path; without it the v1 one, which is
OpenAI's own with another header. A base_url that ends in `/v1` is always the v1 form, and an `api_version` beside it is only passed on."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from pydantic import Field

from hookline.call import Call
from hookline.deployment import Deployment
from hookline.providers.openai import OpenAIOptions, OpenAIProvider, WritePath, plain_path

_OF_A_DEPLOYMENT = (
    "/chat/completions", "/completions", "/embeddings", "/audio/", "/images/generations", "/images/edits",
)  # fmt: skip
"""What stands below `/openai/deployments/{name}` in the classic form; all else stands below `/openai`."""


class AzureOptions(OpenAIOptions):
    """`kind = "azure"`."""

    base_url: str = Field(description="https://NAME.openai.azure.com")
    api_version: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9.-]+$", description='As in "2024-10-21"; none = the v1 form.'
    )


def make_azure(name: str, options: AzureOptions) -> OpenAIProvider:
    """The OpenAI provider with another address and another header for the key. Raises StartupError like it."""
    version = options.api_version

    def write_path(base_path: str) -> WritePath:
        if version is None:
            return plain_path(_v1(base_path))
        if base_path.endswith("/v1"):
            return with_version(plain_path(base_path), version)
        return with_version(classic_path(base_path), version)

    return OpenAIProvider(name, options, write_path=write_path, key_header=("api-key", "{}"))


def classic_path(base_path: str) -> WritePath:
    """Paths with the deployment in them."""
    root = base_path.removesuffix("/openai") + "/openai"
    plain = plain_path(root)

    def write(call: Call, deployment: Deployment) -> str:
        rest = call.path[3:]
        if not deployment.model or not rest.startswith(_OF_A_DEPLOYMENT):
            return plain(call, deployment)
        path = f"{root}/deployments/{quote(deployment.model, safe='')}{rest}"
        return f"{path}?{call.query}" if call.query else path

    return write


def with_version(write_path: WritePath, version: str) -> WritePath:
    """Put `api-version` into the query, unless the client did."""

    def write(call: Call, deployment: Deployment) -> str:
        path = write_path(call, deployment)
        if "api-version=" in urlsplit(path).query:
            return path
        return f"{path}{'&' if '?' in path else '?'}api-version={version}"

    return write


def _v1(base_path: str) -> str:
    return base_path if base_path.endswith("/v1") else base_path.removesuffix("/openai") + "/openai/v1"
