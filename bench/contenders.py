"""The contenders: how each proxy is installed, started, addressed, and asked for its version.

Lives here: one function per proxy, `CONTENDERS` at the end. Elsewhere: environments (installs.py), what is measured (scenarios.py).
Idea: a contender is a function from a `Site` (ports, a folder) to a `Launch` (a command, the headers its callers must send);
every peer gets the settings that make it fastest while it still speaks the OpenAI wire: no log, no key, no retries, one worker."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.installs import REPO, InstallError, install_npm, install_python, install_revision
from bench.processes import find_free_port

SMG = "smg==1.13.0"
LITELLM = "litellm[proxy]==1.106.0"
PORTKEY = "@portkey-ai/gateway@1.15.2"
# Newer ones keep a fetch reply's headers unchangeable, and this gateway then answers every call with a 500 ("immutable").
PORTKEY_OVERRIDES = {"@hono/node-server": "1.13.8"}
KEY = "sk-bench"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a contender runs."""

    port: int
    upstream_port: int
    folder: Path
    """Empty at the start, its own."""

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}/v1"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start it and talk to it. `argv` is None for what is not a proxy: the upstream itself."""

    argv: list[str] | None
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    ready_within_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    prepare: Callable[[], Callable[[Site], Launch]]
    """Installs what is missing (raises InstallError) and returns how to start it."""
    find_version: Callable[[], str]


def _prepare_direct() -> Callable[[Site], Launch]:
    return lambda site: Launch(argv=None)


_NGINX_CONF = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 2m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  upstream up {{ server 127.0.0.1:{upstream_port}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_request_buffering off;
    }}
  }}
}}
"""


def _prepare_nginx() -> Callable[[Site], Launch]:
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if binary is None:
        raise InstallError("nginx is not installed: apt-get install nginx-light")

    def launch(site: Site) -> Launch:
        conf = site.folder / "nginx.conf"
        conf.write_text(
            _NGINX_CONF.format(folder=site.folder, port=site.port, upstream_port=site.upstream_port), encoding="utf-8"
        )
        return Launch([binary, "-p", str(site.folder), "-c", str(conf), "-e", "stderr"])

    return launch


def _prepare_smg() -> Callable[[Site], Launch]:
    binary = install_python("smg", SMG) / "smg"

    def launch(site: Site) -> Launch:
        argv = [str(binary), "launch", "--backend", "openai", "--host", "127.0.0.1", "--port", str(site.port)]
        argv += ["--worker-urls", f"http://127.0.0.1:{site.upstream_port}"]
        argv += ["--log-level", "error", "--history-backend", "none", "--max-concurrent-requests", "0"]
        argv += ["--disable-retries", "--disable-circuit-breaker", "--disable-health-check"]
        argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(find_free_port())]
        return Launch(argv)

    return launch


def _prepare_litellm() -> Callable[[Site], Launch]:
    binary = install_python("litellm", LITELLM) / "litellm"

    def launch(site: Site) -> Launch:
        conf = site.folder / "litellm.yaml"
        conf.write_text(
            "model_list:\n"
            "  - model_name: gpt-4o-mini\n"
            f"    litellm_params: {{model: openai/gpt-4o-mini, api_base: '{site.upstream_url}', api_key: sk-up}}\n"
            "litellm_settings: {telemetry: false, num_retries: 0, request_timeout: 30}\n"
            "router_settings: {num_retries: 0}\n",
            encoding="utf-8",
        )
        argv = [
            str(binary),
            "--config",
            str(conf),
            "--host",
            "127.0.0.1",
            "--port",
            str(site.port),
            "--num_workers",
            "1",
        ]
        env = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # without it, it does not start without a key
        }
        return Launch(argv, env=env, ready_within_s=90.0)

    return launch


def _prepare_portkey() -> Callable[[Site], Launch]:
    modules = install_npm("portkey", PORTKEY, overrides=PORTKEY_OVERRIDES)
    node = shutil.which("node")
    if node is None:
        raise InstallError("node is not installed: apt-get install nodejs npm")

    def launch(site: Site) -> Launch:
        start = modules / "@portkey-ai/gateway/build/start-server.js"
        return Launch(
            [node, str(start), f"--port={site.port}", "--headless"],
            env={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
            headers={"x-portkey-provider": "openai", "x-portkey-custom-host": site.upstream_url},
            ready_within_s=30.0,
        )

    return launch


def prepare_hookline(config: str, binary: Path, tree: Path) -> Callable[[Site], Launch]:
    if not binary.exists():
        raise InstallError(f"{binary} does not exist: run ./scripts/bench, which makes the environment")

    def launch(site: Site) -> Launch:
        own = site.folder / config  # beside it the SQLite records: fresh for every start
        own.write_text((tree / "bench" / config).read_text(encoding="utf-8"), encoding="utf-8")
        argv = [str(binary), "serve", "--config", str(own), "--host", "127.0.0.1", "--port", str(site.port)]
        return Launch(argv, env={"BENCH_UPSTREAM": site.upstream_url, "BENCH_KEY": KEY})

    return launch


def make_hookline(config: str) -> Contender:
    """In: bare.toml or full.toml. Out: this checkout with it."""
    return Contender(
        name=f"hookline-{config.removesuffix('.toml')}",
        prepare=lambda: prepare_hookline(config, Path(sys.executable).with_name("hookline"), REPO),
        find_version=find_own_version,
    )


def make_revision(config: str, revision: str) -> Contender:
    """In: a configuration and a commit. Out: that commit in its own worktree and environment, with its own bench/*.toml."""

    def prepare() -> Callable[[Site], Launch]:
        tree, binaries = install_revision(revision)
        return prepare_hookline(config, binaries / "hookline", tree)

    name = f"hookline-{config.removesuffix('.toml')}@{revision}"
    return Contender(name=name, prepare=prepare, find_version=lambda: revision)


def find_own_version() -> str:
    """Out: this checkout's commit, with "+changes" when files differ from it."""
    commit = _ask(["git", "-C", str(REPO), "rev-parse", "--short=12", "HEAD"])
    has_changes = bool(_ask(["git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no"]))
    return commit + "+changes" if has_changes else commit


def _ask(argv: list[str]) -> str:
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "?"
    return (ended.stdout + ended.stderr).strip()


def _find_nginx_version() -> str:
    found = re.search(r"nginx/(\S+)", _ask(["/usr/sbin/nginx", "-v"]))
    return found[1] if found else "?"


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("direct", _prepare_direct, platform.python_version),
        Contender("nginx", _prepare_nginx, _find_nginx_version),
        make_hookline("bare.toml"),
        make_hookline("full.toml"),
        Contender("smg", _prepare_smg, lambda: SMG.partition("==")[2]),
        Contender("portkey", _prepare_portkey, lambda: PORTKEY.rpartition("@")[2]),
        Contender("litellm", _prepare_litellm, lambda: LITELLM.partition("==")[2]),
    )
}
