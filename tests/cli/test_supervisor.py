"""What the supervisor knows of its workers."""

from __future__ import annotations

import socket
from pathlib import Path

from hookline.config_loading import load
from hookline.launch import Plan
from hookline.supervisor import _Supervisor


def test_a_worker_that_has_reloaded_a_longer_drain_is_not_killed_before(tmp_path: Path) -> None:
    """Symptom: the supervisor went by the configuration of its start, and killed workers in the middle of their calls."""
    path = tmp_path / "proxy.toml"
    path.write_text("[server]\ndrain_s = 7\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor = _Supervisor(load(path), Plan(path, "127.0.0.1", 0, workers=2), listener)

        found = [supervisor._find_drain_s()]
        for text in ("[server]\ndrain_s = 60\n", "[server]\ndrain_s = 1\n", "nonsense"):
            path.write_text(text)
            found.append(supervisor._find_drain_s())

    assert found == [7, 60, 7, 7]
