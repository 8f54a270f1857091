"""Every code block of the README and of docs/ runs, page by page, in the order written.

A block ```python file=x.py``` becomes a file of the page's folder; other Python runs, with ```python needs=x``` only where package x is installed (other people's clients are no dependencies of ours). TOML is a file too, or a configuration that must load. JSON must
parse. In ```console``` blocks each `$ hookline ...`, `$ pytest ...` and `$ curl ...` runs (a `serve` stays up for the page); other commands install or
start what CI has installed and started in its own way, and are named in `NOT_RUN`."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from hookline.config_loading import load
from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "reference" not in p.parts)]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = (
    "./scripts/",
    "pip install",
    "uv ",
    "export ",
    "npm install",
    "node ",
    "git ",
    "kill ",
    "cd ",
    "mkdir ",
    "source ",
    "docker ",
    "python3 -m venv",
    "llm ",
)
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


class Page:
    """The folder of one page and the gateway that runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proxy: ProxyProcess | None = None

    def run(self, language: str, about: str, text: str) -> None:
        needed = re.search(r"needs=(\S+)", about)
        if needed is not None and find_spec(needed[1]) is None:
            return
        name = re.search(r"file=(\S+)", about)
        if name is not None:
            (self.folder / name[1]).write_text(text)
            if name[1] == "proxy.toml":
                self.check(text)
        elif language == "python":
            self.python(text)
        elif language == "toml":
            self.check(text)
        elif language == "json":
            json.loads(text)
        elif language in ("console", "bash", "sh"):
            for command in re.findall(r"^\$ (.+?)$", text.replace("\\\n", " "), re.MULTILINE):
                self.command(command)

    def python(self, text: str) -> None:
        if "base_url" in text and self.proxy is None:
            self.serve()
        if self.proxy is not None:
            text = re.sub(r"http://(127\.0\.0\.1|localhost):8080", self.proxy.base_url, text)
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    def check(self, text: str) -> None:
        """Load it as a proxy.toml; plugins are not compiled, for a fragment may name files of another page."""
        tomllib.loads(text)
        environ = dict.fromkeys(PLACEHOLDER.findall(text), "set")
        path = self.folder / "checked.toml"
        path.write_text(text)
        load(path, environ=environ)

    def command(self, command: str) -> None:
        if command.startswith(NOT_RUN):
            return
        words = shlex.split(command, comments=True)
        if words[:2] == ["hookline", "serve"]:
            self.serve(*words[2:])
            return
        if words[0] == "hookline":
            words = [*HOOKLINE, *words[1:]]
        elif words[0] == "pytest":
            words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]]
        elif words[0] == "curl":
            if self.proxy is None:
                self.serve()
            assert self.proxy is not None
            words = [re.sub(r"http://(127\.0\.0\.1|localhost):8080", self.proxy.base_url, w) for w in words]
            words[1:1] = ["--silent", "--show-error", "--fail-with-body"]
        else:
            pytest.fail(f"nobody knows how to run `{command}`; teach this test, or add it to NOT_RUN")
        done = subprocess.run(
            words, cwd=self.folder, env=clean_environ(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def serve(self, *arguments: str) -> None:
        if self.proxy is not None:
            self.proxy.kill()
        self.proxy = ProxyProcess(self.folder, None, *arguments, "--port", "0")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(path: Path, tmp_path: Path) -> None:
    page = Page(tmp_path)
    try:
        for language, about, text in BLOCK.findall(path.read_text()):
            page.run(language, about, text)
    finally:
        if page.proxy is not None:
            page.proxy.kill()
