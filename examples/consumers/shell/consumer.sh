#!/usr/bin/env bash
# Follows ticks with XREAD: JSON lines on standard output, a position that survives a restart.
set -euo pipefail
export LC_ALL=C
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

block_ms=1000 # also how soon it stops when told
count=100
url=redis://127.0.0.1:6379
prefix=qmt
file=
until_idle_us=
streams=()

fail() {
    echo "error: $*" >&2
    exit 1
}

server() {
    redis-cli --no-auth-warning -u "$url" -e --no-raw "$@"
}

# Warns of a new epoch and of positions that are gone. Behind a read, for trimming goes from the
# oldest: what was read last is still there, so nothing between it and the news was trimmed.
# $1: the streams to look at, as keys.
check() {
    local asked answers checked
    asked=$(jq -cn -L "$here" --arg prefix "$prefix" --argjson read "$1" \
        --argjson position "$position" --args \
        'include "check"; [questions($prefix; $ARGS.positional; $read; $position)]' "${streams[@]}")
    answers=$(jq -r '.[].command' <<<"$asked" | server | grep -E '^(\(|"|1\) 1\) )')
    checked=$(jq -cnR -L "$here" --argjson asked "$asked" --argjson position "$position" \
        'include "check"; judged($asked; $position)' <<<"$answers")
    jq -r '.warnings[] | "warning: \(.)"' <<<"$checked" >&2
    position=$(jq -c 'del(.warnings)' <<<"$checked")
}

# Replaces the file as a whole: a reader finds the old position or the new one.
store() {
    [[ -n $file ]] || return 0
    jq -c '{epochs, last}' <<<"$position" >"$file.new"
    mv -- "$file.new" "$file"
}

# Prints ticks until told to stop, or until none came for so long.
run() {
    local heard read last
    work=$(mktemp -d)
    trap 'rm -rf -- "$work"' EXIT
    stopping=
    trap 'stopping=1' INT TERM
    position='{"epochs": {}, "last": {}}'
    [[ ! -e $file ]] || position=$(cat -- "$file")
    check "$(jq -n '[$ARGS.positional[] | {(.): null}] | add' --args "${streams[@]}")"
    if [[ -n $until_idle_us ]] && ((until_idle_us < block_ms * 1000)); then
        block_ms=$((until_idle_us / 1000 + 1)) # 0 would be for ever
    fi
    heard=${EPOCHREALTIME/./}
    while [[ -z $stopping ]]; do
        mapfile -t last < <(jq -r '.last as $last | $ARGS.positional[] | $last[.] // "0-0"' \
            --args "${streams[@]}" <<<"$position")
        # The first line says what was read, the others are ticks.
        server XREAD COUNT "$count" BLOCK "$block_ms" STREAMS "${streams[@]}" "${last[@]}" |
            jq -cnR -L "$here" 'include "reply"; read_reply' >"$work/batch"
        read=$(head -n 1 "$work/batch")
        check "$read"
        if [[ $read == '{}' ]]; then
            [[ -z $until_idle_us ]] || ((${EPOCHREALTIME/./} - heard < until_idle_us)) || break
            continue
        fi
        # First the ticks, then the position: see ../README.md.
        tail -n +2 "$work/batch"
        position=$(jq -c --argjson read "$read" '.last += $read' <<<"$position")
        store
        heard=${EPOCHREALTIME/./}
    done
}

codes=()
markets=()
while (($#)); do
    case $1 in
        --url) url=${2/#"redis://:"/"redis://default:"} ;; # redis-cli wants a name before ":"
        --prefix) prefix=${2:?} ;;
        --market) markets+=("${2:?}") ;;
        --position) file=${2:?} ;;
        --until-idle) until_idle_us=$(jq -n --arg s "${2:?}" '$s | tonumber * 1e6 | floor') ;;
        --decode-vectors)
            exec jq -c -L "$here" 'include "wire"; .vectors[] | .schema as $schema
                | {name, value: (.bytes | hex | decode($schema))}' "${2:?}"
            ;;
        --*) fail "option $1 is not known" ;;
        *)
            codes+=("$1")
            shift
            continue
            ;;
    esac
    shift 2
done
(((${#codes[@]} > 0) != (${#markets[@]} > 0))) || fail "name codes, or markets with --market"
for market in "${markets[@]}"; do streams+=("{$prefix:$market}:feed"); done
for code in "${codes[@]}"; do streams+=("{$prefix:${code##*.}}:tick:$code"); done
run
