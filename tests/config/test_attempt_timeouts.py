"""Timeouts of attempts: the nearest table that says a thing wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hookline.assembly import make_catalog
from hookline.config_loading import load
from hookline.deployment import Target, Timeouts
from hookline.errors import StartupError

TOML = """
[server]
connect_timeout_s = 1
first_byte_timeout_s = 2
[providers.up]
kind = "demo"
default = true
timeouts = { first_byte_s = 3, idle_s = 30 }
[models.m]
deployments = ["up/a", { provider = "up", model = "b", timeouts = { idle_s = 50, min_bytes_per_s = 10 } }]
timeouts = { idle_s = 40, total_s = 90 }
"""


def settings_of(folder: Path, text: str) -> Any:
    path = folder / "proxy.toml"
    path.write_text(text)
    return load(path)


def test_deployment_beats_model_beats_provider_beats_server(tmp_path: Path) -> None:
    catalog = make_catalog(settings_of(tmp_path, TOML), {})

    assert [d.timeouts for d in catalog.resolve("m")] == [
        Timeouts(1.0, 3.0, 40.0, 90.0, 0.0),
        Timeouts(1.0, 3.0, 50.0, 90.0, 10.0),
    ]
    assert catalog.resolve("anything")[0].timeouts == Timeouts(1.0, 3.0, 30.0, None, 0.0)


def test_the_older_spelling_of_a_provider_still_counts(tmp_path: Path) -> None:
    text = '[providers.up]\nkind = "openai"\ndefault = true\nfirst_byte_timeout_s = 600\nidle_timeout_s = 7\ntimeouts = { idle_s = 9 }\n'

    (deployment,) = make_catalog(settings_of(tmp_path, text), {}).resolve("x")

    assert deployment.timeouts == Timeouts(5.0, 600.0, 9.0)


def test_a_target_begins_with_what_its_deployment_has(tmp_path: Path) -> None:
    deployment = make_catalog(settings_of(tmp_path, TOML), {}).resolve("m")[1]

    target = Target(deployment)

    assert (target.connect_timeout_s, target.first_byte_timeout_s, target.idle_timeout_s) == (1.0, 3.0, 50.0)
    assert (target.total_timeout_s, target.min_bytes_per_s, target.hedge_after_s) == (90.0, 10.0, None)
    assert Target(deployment, first_byte_timeout_s=7.0, total_timeout_s=None).first_byte_timeout_s == 7.0
    assert Target(deployment, first_byte_timeout_s=7.0, total_timeout_s=None).total_timeout_s is None


@pytest.mark.parametrize("table", ["{ total_s = 0 }", "{ ttft_s = 3 }", '{ idle_s = "5" }', "{ min_bytes_per_s = -1 }"])
def test_a_timeout_that_is_none_is_refused_with_its_line(table: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"proxy\.toml:4"):
        settings_of(tmp_path, f'[providers.up]\nkind = "demo"\ndefault = true\ntimeouts = {table}\n')
