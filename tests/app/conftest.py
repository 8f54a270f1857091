"""An App in this process, on a real socket, with plugins from files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hookline.app import App
from hookline.config import Settings
from hookline.config_loading import load
from hookline.launch import open_listener

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'


class Running:
    """A served app and a client for it."""

    def __init__(self, app: App, folder: Path, port: int, http: aiohttp.ClientSession) -> None:
        self.app = app
        self.folder = folder
        self.http = http
        self.base_url = f"http://127.0.0.1:{port}"

    async def ask(self, model: str = "demo/echo", text: str = "hi", **headers: str) -> tuple[int, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        async with self.http.post(f"{self.base_url}/v1/chat/completions", json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.http.get(f"{self.base_url}{path}", headers=headers) as response:
            return response.status, await response.text()

    async def reload(self, text: str) -> list[str]:
        """Write proxy.toml and reload; answers the problems."""
        path = self.folder / "proxy.toml"
        path.write_text(text)
        return await self.app.reload(lambda: load(path, {}))


@pytest.fixture
def settle(tmp_path: Path) -> Callable[[str], Settings]:
    """Checked settings of this text, written to a file."""

    def settle(text: str) -> Settings:
        path = tmp_path / "proxy.toml"
        path.write_text(text)
        return load(path, {})

    return settle


@pytest.fixture
async def start(tmp_path: Path, settle: Callable[[str], Settings]) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Start an app: `await start(toml, **{"mine.py": code})`; stopped with the test."""
    apps: list[App] = []
    async with aiohttp.ClientSession() as http:

        async def start(text: str, **files: str) -> Running:
            for name, code in files.items():
                (tmp_path / f"{name}.py").write_text(code)
            app = App(settle(text))
            listener = open_listener("127.0.0.1", 0)
            port = listener.getsockname()[1]
            await app.start(listener)
            apps.append(app)
            return Running(app, tmp_path, port, http)

        yield start
    for app in apps:
        await app.stop(0)
