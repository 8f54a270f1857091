#!/usr/bin/env bash
# Real servers for tests, on free loopback ports, with their data under one temporary folder and without systemd.
#
#     scripts/services.sh install              Debian packages that are missing, as root or by sudo
#     scripts/services.sh run COMMAND...       start all, run COMMAND with the variables below set, stop all
#     source scripts/services.sh; start_redis; ...; stop_services
#
# start_redis exports REDIS_URL, start_postgres POSTGRES_DSN, start_rabbitmq AMQP_URL.
# Lives here: servers and node. Elsewhere: Python and its packages (bootstrap.sh).

SERVICES_DIR="${SERVICES_DIR:-}"

install_services() {
  local missing=()
  command -v redis-server >/dev/null || missing+=(redis-server)
  [ -x "$(_postgres_bin)/initdb" ] || missing+=(postgresql)
  [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
  _apt "${missing[@]}"
}

install_postgres() {
  [ -x "$(_postgres_bin)/initdb" ] || _apt postgresql
}

install_redis() { # tests start their own servers (hookline.testing.redis)
  local missing=()
  command -v redis-server >/dev/null || missing+=(redis-server)
  _apt "${missing[@]}"
}

install_node() { # for the npm SDK's tests; Debian 12's own Node 18 will do
  local missing=()
  command -v node >/dev/null || missing+=(nodejs)
  command -v npm >/dev/null || missing+=(npm)
  _apt "${missing[@]}"
}

_apt() { # _apt PACKAGE...: install what is named, or say how
  [ $# = 0 ] && return 0
  local as=()
  if [ "$(id -u)" != 0 ]; then as=(sudo -n); fi
  { "${as[@]}" apt-get update -qq && "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null || {
    echo "missing: $*; as root: apt-get install -y $*" >&2
    return 1
  }
}

start_redis() {
  _make_services_dir
  local folder="$SERVICES_DIR/redis" port
  port="$(_free_port)"
  mkdir -p "$folder"
  redis-server --bind 127.0.0.1 --port "$port" --dir "$folder" --save "" --appendonly no \
    --daemonize yes --pidfile "$folder/pid" --logfile "$folder/log" >/dev/null || return 1
  _until 10 _answers "$port" 'PING\r\n' '+PONG' || return 1
  export REDIS_URL="redis://127.0.0.1:$port/0"
}

start_postgres() { # refuses to run as root: then as the package's postgres user, who has to pass through the folder
  _make_services_dir
  local folder="$SERVICES_DIR/postgres" port bin is_new=false
  bin="$(_postgres_bin)"
  mkdir -p "$folder"
  if [ ! -d "$folder/data" ]; then is_new=true && _free_port >"$folder/port"; fi
  port="$(<"$folder/port")" # after stop_postgres the same one, with the same data
  if [ "$(id -u)" = 0 ]; then chown postgres "$folder"; fi
  (
    cd "$folder" || exit 1
    if _as postgres "$bin/pg_ctl" -D data status >/dev/null 2>&1; then exit 0; fi
    if $is_new; then
      _as postgres "$bin/initdb" -D data -U hookline -A trust -E UTF8 --no-sync >"$folder/initdb.log" 2>&1 || exit 1
    fi
    _as postgres "$bin/pg_ctl" -D data -l "$folder/log" -w -t 30 \
      -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder -c fsync=off -c max_connections=200" start >/dev/null || exit 1
    if $is_new; then _as postgres "$bin/createdb" -h 127.0.0.1 -p "$port" -U hookline hookline; fi
  ) || return 1
  export POSTGRES_DSN="postgresql://hookline@127.0.0.1:$port/hookline"
}

stop_postgres() { # at once, as a machine that fails; start_postgres starts it again
  [ -f "$SERVICES_DIR/postgres/data/postmaster.pid" ] || return 0
  (cd "$SERVICES_DIR/postgres" && _as postgres "$(_postgres_bin)/pg_ctl" -D data -m immediate -w stop >/dev/null)
}

start_rabbitmq() { # /usr/sbin/rabbitmq-server wants root and fixed paths; the one in lib runs as anyone, anywhere
  _make_services_dir
  local folder="$SERVICES_DIR/rabbitmq" port
  port="$(_free_port)"
  mkdir -p "$folder/mnesia" "$folder/log"
  chmod 0700 "$folder"
  RABBITMQ_EPMD_PORT="$(_free_port)"
  echo '[].' >"$folder/plugins"
  echo 'loopback_users = none' >"$folder/rabbitmq.conf"
  env HOME="$folder" LC_ALL=C.UTF-8 RABBITMQ_NODENAME="hookline$port@localhost" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
    RABBITMQ_NODE_PORT="$port" RABBITMQ_DIST_PORT="$(_free_port)" ERL_EPMD_PORT="$RABBITMQ_EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_MNESIA_BASE="$folder/mnesia" RABBITMQ_LOG_BASE="$folder/log" RABBITMQ_PID_FILE="$folder/pid" \
    RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE="$folder/rabbitmq" RABBITMQ_ENABLED_PLUGINS_FILE="$folder/plugins" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none" \
    /usr/lib/rabbitmq/bin/rabbitmq-server -detached >"$folder/start.log" 2>&1
  _until 90 _answers "$port" 'AMQP\0\0\x09\x01' $'\x01' || return 1
  export AMQP_URL="amqp://guest:guest@127.0.0.1:$port/"
}

stop_services() {
  [ -n "$SERVICES_DIR" ] || return 0
  _stop_by_pidfile "$SERVICES_DIR/redis/pid"
  _stop_by_pidfile "$SERVICES_DIR/rabbitmq/pid"
  stop_postgres
  if [ -n "${RABBITMQ_EPMD_PORT:-}" ]; then # the node's own port mapper: it ends once no node is registered
    _until 2 env ERL_EPMD_PORT="$RABBITMQ_EPMD_PORT" epmd -kill
    RABBITMQ_EPMD_PORT=""
  fi
  case "$SERVICES_DIR" in */hookline-services.*) rm -rf "$SERVICES_DIR" ;; esac
  SERVICES_DIR=""
}

_make_services_dir() {
  if [ -z "$SERVICES_DIR" ]; then SERVICES_DIR="$(mktemp -d "${TMPDIR:-/tmp}/hookline-services.XXXXXX")"; fi
  chmod 0711 "$SERVICES_DIR"
}

_postgres_bin() { find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1; }

_free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

_as() { # _as USER COMMAND...: as USER if we are root, else as ourselves
  local user="$1"
  shift
  if [ "$(id -u)" = 0 ]; then runuser -u "$user" -- "$@"; else "$@"; fi
}

_until() { # _until SECONDS COMMAND...: try until it succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || {
      echo "not in time: $*" >&2
      return 1
    }
    sleep 0.1
  done
}

_answers() { # _answers PORT BYTES BEGINNING: whether a server answers BYTES with BEGINNING
  python3 - "$@" <<'PYTHON'
import socket, sys
port, sent, expected = int(sys.argv[1]), sys.argv[2].encode().decode("unicode_escape").encode("latin-1"), sys.argv[3].encode()
with socket.create_connection(("127.0.0.1", port), 2) as connection:
    connection.settimeout(2)
    connection.sendall(sent)
    sys.exit(connection.recv(64)[: len(expected)] != expected)
PYTHON
}

_stop_by_pidfile() {
  local pid
  pid="$(cat "$1" 2>/dev/null)" || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  _until 10 _is_gone "$pid" || kill -KILL "$pid" 2>/dev/null
}

_is_gone() { ! kill -0 "$1" 2>/dev/null; }

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case "${1:-}" in
    install) install_services && install_node ;;
    run)
      shift
      install_services || exit 1
      trap stop_services EXIT
      start_redis && start_postgres && start_rabbitmq || exit 1
      "$@"
      exit $?
      ;;
    *)
      sed -n '2,9p' "$0"
      exit 2
      ;;
  esac
fi
