"""The reference says what the code says, and nothing public is left out of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hookline.chain import PHASES
from hookline.surfaces.cors import EXPOSED

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"


def test_reference_is_made_from_this_code() -> None:
    command = [sys.executable, "scripts/make_reference.py", "--check"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("hook", PHASES)
def test_hook_has_a_heading(hook: str) -> None:
    assert f"\n## {hook}\n" in (ROOT / "docs" / "reference" / "hooks.md").read_text()


def test_every_metric_of_the_source_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    sources = (path.read_text() for path in (ROOT / "src" / "hookline").rglob("*.py"))

    names = {name for text in sources for name in re.findall(r"\.(?:counter|gauge|histogram)\(\s*\"(\w+)\"", text)}

    assert names
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_header_of_ours_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "headers.md").read_text()
    sources = (path.read_text() for path in (ROOT / "src" / "hookline").rglob("*.py"))

    names = {name for text in sources for name in re.findall(r"x-hookline-[a-z0-9-]*[a-z0-9]", text)}

    assert names
    assert {name for name in names if f"| `{name}" not in page} == set()


def test_browsers_may_read_every_header_of_a_reply() -> None:
    of_replies = (ROOT / "docs" / "reference" / "headers.md").read_text().partition("## Of replies")[2]

    assert set(EXPOSED.split(", ")) == set(re.findall(r"^\| `([a-z0-9-]+)", of_replies, re.M))


@pytest.mark.parametrize(
    "term",
    ["downstream", "upstream", "provider", "deployment", "model", "virtual key", "principal", "attempt", "fallback",
     "cooldown", "reservation", "spend", "TTFT", "TPOT", "chunk", "event", "usage", "ticket", "target", "hook", "plugin"],
)  # fmt: skip
def test_term_is_in_the_glossary(term: str) -> None:
    assert f"**{term}**" in GLOSSARY.read_text()
