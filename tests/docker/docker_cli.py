"""What the image's scripts need of a redis-cli, for a machine that has none."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def show(value: Any) -> None:
    """Print an answer as redis-cli does for a program: a line for each value."""
    if isinstance(value, (list, tuple)):
        for one in value:
            show(one)
    else:
        print(value.decode() if isinstance(value, bytes) else value)


def main() -> int:
    """Send one command; return 1 where it is refused."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-s", dest="socket")
    parser.add_argument("--user")
    parser.add_argument("--no-auth-warning", action="store_true")
    parser.add_argument("-e", action="store_true")
    parser.add_argument("-x", action="store_true")
    options, command = parser.parse_known_args()
    if options.x:
        command.append(sys.stdin.read())
    connection = redis.Redis(
        unix_socket_path=options.socket,
        username=options.user,
        password=os.environ["REDISCLI_AUTH"],
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    connection.response_callbacks.clear()
    try:
        show(connection.execute_command(*command))
    except redis.ConnectionError as error:
        print(f"Could not connect: {error}", file=sys.stderr)
        return 1
    except redis.RedisError as error:
        print(error)
        return int(options.e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
