#!/bin/sh
# A command, or a prompt, as the user `admin` of the server that runs in this container:
#   docker compose -f docker/compose.yaml exec streams qmt-admin SCRIPT KILL
set -eu
run=${QMT_RUN_DIR:-/run/qmt-redis}
cli=${QMT_REDIS_CLI:-$(command -v valkey-cli || command -v redis-cli)}
# Valkey's cli reads the same variable; a flag could be seen by ps.
REDISCLI_AUTH=$(cat "$run/admin")
export REDISCLI_AUTH
exec "$cli" --no-auth-warning -s "$run/redis.sock" --user admin "$@"
