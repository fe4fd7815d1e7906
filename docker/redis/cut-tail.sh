#!/bin/sh
# Cuts what a power loss left half written from the end of the append-only file, and keeps it aside.
#
# Servers before Valkey 9 do so by themselves, but cut inside a transaction only behind its last
# whole command: MULTI stays open, everything written next counts as part of it, and the next start
# throws that away. Usage: cut-tail.sh folder
set -eu

folder=$1/appendonlydir
check=${QMT_REDIS_CHECK_AOF-$(command -v valkey-check-aof || command -v redis-check-aof || :)}
most=${QMT_REDIS_CUT_BYTES:-67108864}

manifest=$folder/appendonly.aof.manifest
[ -f "$manifest" ] || exit 0
[ -n "$check" ] || exit 0
last=$(sed -n 's/^file \([^ ]*\) seq [0-9]* type i.*/\1/p' "$manifest" | tail -n 1)
[ -s "$folder/$last" ] || exit 0

! told=$("$check" "$folder/$last" 2>&1) || exit 0
good=$(printf '%s\n' "$told" | sed -n 's/.* ok_up_to=\([0-9]*\),.*/\1/p')
rest=$(printf '%s\n' "$told" | sed -n 's/.* diff=\([0-9]*\).*/\1/p')
[ -n "$good" ] && [ -n "$rest" ] || exit 0
if [ "$rest" -gt "$most" ]; then
    echo "$last is damaged $rest bytes before its end. Nothing was cut: see docs/restart-tests.md." >&2
    exit 0
fi
aside=$1/cut-$(date -u +%Y%m%dT%H%M%SZ)-$last
kept="kept as $aside"
if ! tail -c "$rest" "$folder/$last" >"$aside"; then # a full disk is no reason not to start
    rm -f "$aside"
    kept="not kept: the disk is full"
fi
truncate -s "$good" "$folder/$last"
echo "$last ended half written: $rest bytes were cut from it and $kept." >&2
