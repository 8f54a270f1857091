# shellcheck shell=bash
# Makes .venv hold this project and what it needs. Sourced by scripts/serve, scripts/test and .ci/run:
#
#     source "$(dirname "$0")/bootstrap.sh"; bootstrap        # what `hookline serve` needs
#     bootstrap dev                                           # and what the tests and checks need
#
# Lives here: finding Python, getting uv, filling .venv. Elsewhere: exact versions ([tool.uv] constraint-dependencies in
# pyproject.toml), servers that tests start (services.sh).
# Idea: a stamp in .venv names what it was made from; while that is unchanged, bootstrap does nothing and costs milliseconds.
#
# HOOKLINE_PYTHON=/path/to/python picks the interpreter for a new .venv.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
UV_VERSION=0.13.9
UV="$ROOT/.tools/bin/uv"
# Where the machine has a trust store, its administrator's choice counts (a company's own root, for example), as it does for pip.
if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"; fi

bootstrap() {
  local wanted="${1:-run}"
  _is_current "$wanted" && return 0
  mkdir -p "$ROOT/.tools" 2>/dev/null || _fail "cannot write to $ROOT/.tools: run this as a user who may write to the checkout"
  # Two scripts started at once must not fill one .venv together. The lock goes with the descriptor, also when we are killed.
  exec 9>"$ROOT/.tools/lock"
  if command -v flock >/dev/null 2>&1; then flock 9; fi
  _is_current "$wanted" || _install "$wanted"
  exec 9>&-
}

_install() {
  local wanted="$1" python
  python="$(_find_python)" || _fail "Python 3.11 or newer is needed: on Debian 12 or newer, \`apt-get install python3 python3-venv\`"
  echo "hookline: installing into .venv (once; $("$python" --version 2>&1))" >&2
  _get_uv "$python"
  if ! "$ROOT/.venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    "$UV" venv --quiet --clear --no-python-downloads --python "$python" "$ROOT/.venv" || _fail "could not make .venv with $python"
  fi
  rm -f "$ROOT"/.venv/hookline-*.stamp
  local what=(-e "$ROOT") manifest
  if [ "$wanted" = dev ]; then
    what=(--group dev)
    while IFS= read -r manifest; do what+=(-e "$(dirname "$manifest")"); done < <(_manifests)
  fi
  # `uv pip install` and not `uv sync`: a uv.lock names the registry it was made with. The pins are read from
  # [tool.uv] of the pyproject.toml in the current directory.
  (cd "$ROOT" && "$UV" pip install --quiet --python "$ROOT/.venv/bin/python" "${what[@]}") ||
    _fail "could not install the project's dependencies; the lines above say which (is a package index reachable?)"
  _fingerprint >"$ROOT/.venv/hookline-$wanted.stamp"
}

_is_current() {
  local stamp="$ROOT/.venv/hookline-dev.stamp"
  [ -f "$stamp" ] || { [ "$1" = run ] && stamp="$ROOT/.venv/hookline-run.stamp"; }
  [ -f "$stamp" ] && [ "$(<"$stamp")" = "$(_fingerprint)" ]
}

_fingerprint() { # what .venv was made from: this place, its manifests, its interpreter
  local python=gone
  [ -x "$ROOT/.venv/bin/python" ] && python="$(readlink -f "$ROOT/.venv/bin/python")"
  echo "$ROOT $python"
  _manifests | xargs -d '\n' cat "${BASH_SOURCE[0]}" | cksum
}

_manifests() { # the root's, and those of the plugins that ship apart
  local manifest
  for manifest in "$ROOT"/pyproject.toml "$ROOT"/plugins/*/pyproject.toml; do
    if [ -f "$manifest" ]; then echo "$manifest"; fi
  done
}

_find_python() {
  local name
  for name in "${HOOKLINE_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    [ -n "$name" ] || continue
    "$name" -c 'import sys; print(sys.executable) if sys.version_info >= (3, 11) else sys.exit(1)' 2>/dev/null && return 0
  done
  return 1
}

_get_uv() { # into .tools, by pip: the interpreter's own, else that of a venv made for it
  local python="$1" pip
  "$UV" --version 2>/dev/null | grep -qF " $UV_VERSION" && return 0
  if "$python" -m pip --version >/dev/null 2>&1; then
    pip=("$python" -m pip)
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || _get_venv_module "$python"
    "$python" -m venv "$ROOT/.tools/pip" || _fail "could not make $ROOT/.tools/pip with $python -m venv"
    pip=("$ROOT/.tools/pip/bin/python" -m pip)
  fi
  # --target is allowed in an externally managed Python: it touches nothing outside .tools.
  "${pip[@]}" install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade --target "$ROOT/.tools" "uv==$UV_VERSION" ||
    _fail "could not install uv $UV_VERSION by pip into $ROOT/.tools (is a package index reachable?)"
}

_get_venv_module() {
  local line="apt-get install -y python3-venv"
  if ! command -v apt-get >/dev/null 2>&1; then
    _fail "$1 has neither pip nor venv: install one of them, then run this again"
  elif [ "$(id -u)" = 0 ]; then
    _apt_install env python3-venv
  elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    _apt_install sudo python3-venv
  else
    _fail "Python's venv module is missing; as root: $line"
  fi
  "$1" -c 'import ensurepip, venv' 2>/dev/null || _fail "Python's venv module is still missing for $1; as root: $line"
}

_apt_install() { # _apt_install env|sudo PACKAGE...
  local as="$1"
  shift
  { "$as" apt-get update -qq && "$as" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } >/dev/null ||
    _fail "could not install by apt-get: $*"
}

_fail() {
  echo "hookline: $1" >&2
  exit 1
}
