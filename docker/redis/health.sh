#!/bin/sh
# Whether the server answers, can write (PING fails while its disk is full) and has what start.sh
# loads.
here=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
[ -e "${QMT_RUN_DIR:-/run/qmt-redis}/ready" ] || {
    echo "The functions are not loaded." >&2
    exit 1
}
answer=$("$here/admin.sh" PING 2>&1)
[ "$answer" = PONG ] || {
    echo "$answer" >&2
    exit 1
}
