"""Where the contenders come from: each in an environment of its own under bench/.work/, made once and kept.

Lives here: uv environments, npm folders, git worktrees of other commits. Elsewhere: Debian packages (scripts/bench), how each is started (contenders.py).
Idea: an environment is complete only when its marker file names what was asked for; a half-made one is made again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
WORK = REPO / "bench" / ".work"
_LIMIT_S = 900


class InstallError(Exception):
    """A contender could not be installed; the run goes on without it."""


def install_python(name: str, requirement: str) -> Path:
    """In: a folder name, one pip requirement. Out: the environment's bin folder. Raises InstallError."""
    home = WORK / name

    def make() -> None:
        _make_environment(home)
        # Run from outside the repository: its own version constraints must not bind other people's packages.
        _run([_find_uv(), "pip", "install", "-q", "--python", str(home / "bin/python"), requirement], cwd=WORK.anchor)

    _once(home, requirement, make)
    return home / "bin"


def install_npm(name: str, package: str, *, overrides: Mapping[str, str]) -> Path:
    """In: a folder name, a package with version, versions to force on what it needs. Out: its node_modules folder.
    Raises InstallError."""
    home = WORK / name
    package_name, _, version = package.rpartition("@")
    manifest = {"private": True, "dependencies": {package_name: version}, "overrides": dict(overrides)}

    def make() -> None:
        home.mkdir(parents=True)
        (home / "package.json").write_text(json.dumps(manifest), encoding="utf-8")
        _run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=str(home))

    _once(home, json.dumps(manifest), make)
    return home / "node_modules"


def install_revision(revision: str) -> tuple[Path, Path]:
    """In: a commit, tag or branch. Out: a worktree of it and the bin folder of its own environment. Raises InstallError."""
    commit = _run(["git", "rev-parse", "--short=12", "--verify", f"{revision}^{{commit}}"], cwd=str(REPO)).strip()
    tree, home = WORK / "trees" / commit, WORK / "revisions" / commit

    def make() -> None:
        if not tree.exists():
            _run(["git", "worktree", "prune"], cwd=str(REPO))
            _run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=str(REPO))
        _make_environment(home)
        _run([_find_uv(), "pip", "install", "-q", "--python", str(home / "bin/python"), str(tree)], cwd=str(tree))

    _once(home, commit, make)
    return tree, home / "bin"


def _once(home: Path, wanted: str, make: Callable[[], None]) -> None:
    marker = home / ".complete"
    if marker.exists() and marker.read_text() == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    make()
    marker.write_text(wanted)


def _make_environment(home: Path) -> None:
    _run([_find_uv(), "venv", "-q", "--python", sys.executable, str(home)], cwd=WORK.anchor)


def _find_uv() -> str:
    own = REPO / ".tools/bin/uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        raise InstallError("uv is not installed: run ./scripts/bench, which brings it, or pip install uv")
    return found


def _run(argv: Sequence[str], *, cwd: str) -> str:
    try:
        ended = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{argv[0]}: {error}") from error
    if ended.returncode != 0:
        raise InstallError(f"{' '.join(argv)}: exit code {ended.returncode}: {ended.stderr.strip()[-800:]}")
    return ended.stdout
