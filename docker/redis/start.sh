#!/bin/sh
# Starts the streams or the jobs server: writes the users file with hashed passwords from the
# environment, then becomes the server. Usage: start.sh streams|jobs [redis-server options]
set -eu

kind=$1
shift
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
users=${QMT_ACL_FILE:-/tmp/users.acl}

# Prints the SHA-256 of a password; refuses an empty one.
hash_of() {
    value=$(printenv "$1" || true)
    if [ -z "$value" ]; then
        echo "$1 is not set: every role needs a password. See docker/.env.example." >&2
        exit 1
    fi
    printf '%s' "$value" | sha256sum | cut -d ' ' -f 1
}

umask 077
# Long lines are easier to read in pieces: a trailing backslash joins them.
sed -e '/^#/d' -e '/^$/d' -e ':a' -e '/\\$/{N' -e 's/ *\\\n */ /' -e 'ta' -e '}' \
    "$here/$kind.acl" >"$users"
for role in PRODUCER WORKER GATEWAY ARCHIVE CLIENT READER; do
    if grep -q "@$role@" "$users"; then
        hash=$(hash_of "QMT_${role}_PASSWORD")
        sed -i "s/@$role@/#$hash/" "$users"
    fi
done

exec "${QMT_REDIS_BINARY:-redis-server}" "$here/$kind.conf" --aclfile "$users" \
    --dir "${QMT_REDIS_DIR:-/data}" --maxmemory "${QMT_REDIS_MEMORY:-2gb}" "$@"
