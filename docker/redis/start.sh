#!/bin/sh
# Starts the streams or the jobs server: writes the users file with hashed passwords from the
# environment, then becomes the server. Usage: start.sh streams|jobs [server options]
# As soon as the streams server answers, the producer's functions are loaded into it; before that
# health.sh fails. QMT_RUN_DIR holds the socket and the admin's password: nobody else may read it.
set -eu

kind=$1
shift
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
server=${QMT_REDIS_BINARY:-$(command -v valkey-server || command -v redis-server)}
export QMT_RUN_DIR="${QMT_RUN_DIR:-/run/qmt-redis}"
users=$QMT_RUN_DIR/users.acl

fail() {
    echo "start.sh: $1" >&2
    exit 1
}

# Prints the SHA-256 of a password; refuses an empty one.
hash_of() {
    value=$(printenv "$1" || true)
    [ -n "$value" ] || fail "$1 is not set: every role needs a password. See docker/.env.example."
    printf '%s' "$value" | sha256sum | cut -d ' ' -f 1
}

# Whether the server has the very functions of the file, or takes them. A library that is there
# already needs no memory.
has_functions() {
    case $("$here/admin.sh" -e FUNCTION LIST LIBRARYNAME "$library" WITHCODE 2>/dev/null) in
    *"$(cat "$functions")"*) return ;;
    esac
    error=$("$here/admin.sh" -e -x FUNCTION LOAD REPLACE <"$functions" 2>&1)
}

# Tries until the server has the functions, which is not while its memory is full; ends with it.
load_functions() {
    told=
    while kill -0 "$1" 2>/dev/null; do
        error=
        if has_functions; then
            : >"$QMT_RUN_DIR/ready"
            return
        fi
        case $error in
        "$told" | *"Could not connect"* | *LOADING*) ;; # said already, or it only begins
        *)
            echo "start.sh: $functions could not be loaded: $error" >&2
            told=$error
            ;;
        esac
        sleep 0.2
    done
}

case $("$server" --version) in
*"v=7.0."*) acl=$here/$kind-7.0.acl ;;
*) acl=$here/$kind.acl ;;
esac
# In the image beside this file, in a clone where the producer has it.
functions=$here/functions.lua
[ -e "$functions" ] || functions=$here/../../producer/qmt_producer/functions.lua
if [ "$kind" = streams ]; then
    [ -r "$functions" ] || fail "$functions is missing."
    library=$(sed -n '1s/^#!lua name=//p' "$functions")
fi

umask 077
mkdir -p "$QMT_RUN_DIR"
rm -f "$QMT_RUN_DIR/ready"
# The admin's password is made anew at each start and is in no setting: it serves those alone who
# can read this folder.
: "${QMT_ADMIN_PASSWORD:=$(od -An -v -N 32 -t x1 /dev/urandom | tr -d ' \n')}"
export QMT_ADMIN_PASSWORD
printf '%s' "$QMT_ADMIN_PASSWORD" >"$QMT_RUN_DIR/admin"

# Long lines are easier to read in pieces: a trailing backslash joins them.
sed -e '/^#/d' -e '/^$/d' -e ':a' -e '/\\$/{N' -e 's/ *\\\n */ /' -e 'ta' -e '}' "$acl" >"$users"
for role in PRODUCER WORKER GATEWAY ARCHIVE CLIENT READER ADMIN; do
    if grep -q "@$role@" "$users"; then
        hash=$(hash_of "QMT_${role}_PASSWORD")
        sed -i "s/@$role@/#$hash/" "$users"
    fi
done

/bin/sh "$here/cut-tail.sh" "${QMT_REDIS_DIR:-/data}"
if [ "$kind" = streams ]; then
    # A child of nobody here: the server knows its own children only.
    (load_functions $$ &)
else
    : >"$QMT_RUN_DIR/ready"
fi
unset QMT_ADMIN_PASSWORD
exec "$server" "$here/$kind.conf" --aclfile "$users" \
    --unixsocket "$QMT_RUN_DIR/redis.sock" --unixsocketperm 700 \
    --dir "${QMT_REDIS_DIR:-/data}" --maxmemory "${QMT_REDIS_MEMORY:-2gb}" "$@"
