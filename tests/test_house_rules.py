"""The rules of the house that a machine can check: sizes, names, docstrings, imports without effect."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "hookline"
FILES = sorted(SOURCE.rglob("*.py"))
CORE = ("call.py", "slots.py", "errors.py", "hookspecs.py", "chain.py", "pipeline.py")
CORE_LINES_MAX = 1200
FILE_LINES_MAX = 450
NAMELESS = {"utils", "util", "helpers", "helper", "common", "types", "base", "manager", "misc", "shared"}
"""File names that say nothing about what is inside."""

IMPORT_ALL = """
import importlib, os, pkgutil, sys, threading

def watch(event, arguments):
    if event in ("socket.__new__", "socket.connect", "subprocess.Popen", "os.system", "os.fork", "sqlite3.connect"):
        raise AssertionError(f"an import did {event} {arguments}")

def refuse(thread):
    raise AssertionError(f"an import started thread {thread.name}")

sys.addaudithook(watch)
threading.Thread.start = refuse
environ = dict(os.environ)
import hookline
import logging
handlers = list(logging.root.handlers)
for module in pkgutil.walk_packages(hookline.__path__, "hookline."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert dict(os.environ) == environ, "an import changed the environment"
assert logging.root.handlers == handlers, "an import set up logging"
assert not os.listdir("."), "an import wrote a file"
print("no effect")
"""


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_the_core_fits_into_its_lines():
    assert sum(lines_of(SOURCE / name) for name in CORE) <= CORE_LINES_MAX


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_one_room(path):
    assert lines_of(path) <= FILE_LINES_MAX, f"{path.name} is two rooms: split it by what its two halves answer"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_named_by_a_noun_that_says_what_is_inside(path):
    assert path.stem not in NAMELESS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_says_what_lives_here(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert docstring, f"{path} has no module docstring"


def test_importing_has_no_effect(tmp_path):
    """No socket, thread, process, file, logging handler or environment variable comes of importing every module."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout.strip()) == (0, "no effect"), done.stderr


def test_only_the_attempt_loop_calls_a_provider():
    """Providers may stand on each other (a bridge sends through the one it wraps); everybody else goes through the chain."""
    callers = {
        name_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "send"
        and "provider" in ast.unparse(node.func.value).lower()
    }

    assert {name for name in callers if not name.startswith("providers/")} == {"attempts.py"}


def test_the_import_contract_of_plugins_names_every_module():
    """A forbidden contract has no wildcard that leaves out its source, so a new module could be forgotten there."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    forbidden = set(contracts["importlinter:plugins"]["forbidden_modules"].split())

    modules = {f"hookline.{path.stem}" for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    packages = {f"hookline.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert (modules | packages) - {"hookline.builtins"} == forbidden


def test_tests_import_no_other_tests():
    """With importmode=importlib a test module has no name that others could import; what they share lives in conftest.py or hookline.testing."""
    guilty = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.ImportFrom)
            and ((node.module or "").split(".")[0] in ("tests", "conftest") or node.level)
        )
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("tests", "conftest") for a in node.names))
    }

    assert guilty == set()
