"""The official npm SDK against a real gateway (npm/check.mjs says what it does)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "npm"
WORK = Path(__file__).parents[1] / ".work" / "npm"
DEMO = '[server]\nport = 0\n[chain]\nplugins = []\n[providers.demo]\nkind = "demo"\ndefault = true\n'


@pytest.fixture(scope="module")
def sdk() -> Path:
    """A folder with the SDK in its pinned version, installed once."""
    assert shutil.which("npm"), "npm is missing; scripts/services.sh has install_node"
    WORK.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    stamp = WORK / "installed.json"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.copy(HERE / "package.json", WORK)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        subprocess.run(command, cwd=WORK, check=True, timeout=110)
        stamp.write_text(wanted)
    shutil.copy(HERE / "check.mjs", WORK)
    return WORK


def test_npm_sdk_sees_what_it_would_see_at_openai(sdk: Path, serve) -> None:
    proxy = serve(DEMO)

    done = subprocess.run(
        ["node", "check.mjs", f"{proxy.base_url}/v1"], cwd=sdk, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "chat": "ping pong",
        "stream": "ping pong",
        "tool": "add",
        "embedding": "number",
        "response": "ping",
        "audio": True,
        "file": "a.jsonl",
        "models": True,
        "error": ["RateLimitError", 429],
        "cut": "APIError",
    }
