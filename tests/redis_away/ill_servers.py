"""Real servers that refuse: still loading, full, out of memory, another password, no rights."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Final, Literal

import redis
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer

Refusal = Literal["absent", "hung", "LOADING", "WRONGPASS", "NOPERM", "MISCONF", "OOM"]

_KEYS: Final = 400
_LOADING_US: Final = 50_000
"""How long each key takes to load: the server is loading for twenty seconds, or until killed."""
_KEY_BYTES: Final = 1024
"""As long as what is read between two looks at its clients."""
_BOSS: Final = "boss"


class IllServer:
    """A server that can be made to refuse and to serve again, by a user that it always obeys."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._loading: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.server.start()
        with redis.Redis.from_url(self.server.url) as connection:
            connection.execute_command(
                *("ACL", "SETUSER", _BOSS, "on", f">{_BOSS}", "~*", "&*", "+@all")
            )

    def connect(self) -> redis.Redis:
        return redis.Redis(port=self.server.port, username=_BOSS, password=_BOSS)

    def refuse(self, refusal: Refusal) -> None:
        """Begin to refuse; the server runs."""
        if refusal == "absent":
            self.server.kill()
        elif refusal == "hung":
            self._signal(signal.SIGSTOP)
        elif refusal == "LOADING":
            self._load_slowly()
        else:
            with self.connect() as boss:
                self._refuse(boss, refusal)

    def serve(self, refusal: Refusal) -> None:
        """Refuse no longer."""
        if refusal == "absent":
            self.start()
        elif refusal == "hung":
            self._signal(signal.SIGCONT)
        elif refusal == "LOADING":
            self.stop_loading()
            self.start()
        else:
            with self.connect() as boss:
                self._serve(boss, refusal)

    def _signal(self, number: signal.Signals) -> None:
        assert self.server.process is not None
        self.server.process.send_signal(number)

    def _refuse(self, boss: redis.Redis, refusal: Refusal) -> None:
        if refusal == "WRONGPASS":
            boss.execute_command("ACL", "SETUSER", "default", "resetpass", ">another")
        elif refusal == "NOPERM":
            boss.execute_command("ACL", "SETUSER", "default", "-@all")
        elif refusal == "OOM":
            boss.config_set("maxmemory", "1")
        else:  # the next save fails as on a full disk: no more writes, and no PING
            folder = self.server.directory / "full"
            folder.mkdir()
            boss.config_set("dir", str(folder))
            folder.rmdir()
            boss.config_set("save", "3600 1")
            boss.config_set("stop-writes-on-bgsave-error", "yes")
            boss.bgsave()
            wait_for(lambda: boss.info("persistence")["rdb_last_bgsave_status"] == "err")
        # Nobody stays who was let in before.
        boss.execute_command("CLIENT", "KILL", "USER", "default")

    def _serve(self, boss: redis.Redis, refusal: Refusal) -> None:
        if refusal == "WRONGPASS":
            password = self.server.password
            boss.execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")
        elif refusal == "NOPERM":
            boss.execute_command("ACL", "SETUSER", "default", "+@all")
        elif refusal == "OOM":
            boss.config_set("maxmemory", "0")
        else:
            boss.config_set("dir", str(self.server.directory))
            boss.config_set("save", "")
            boss.config_set("stop-writes-on-bgsave-error", "no")

    def _load_slowly(self) -> None:
        with self.connect() as boss:
            boss.mset({f"key:{number}": os.urandom(_KEY_BYTES) for number in range(_KEYS)})
            if self.server.aof:
                boss.bgrewriteaof()
                wait_for(lambda: _is_rewritten(boss.info("persistence")))
            else:
                boss.save()
        self.server.kill()
        slow = [
            *("--key-load-delay", str(_LOADING_US)),
            *("--loading-process-events-interval-bytes", str(_KEY_BYTES)),
        ]
        with open(self.server.directory / "redis.log", "ab") as log:
            self._loading = subprocess.Popen(
                [*self.server.prepare(), *slow], stdout=log, stderr=log, cwd=self.server.directory
            )
        wait_for(lambda: "loading" in self._refusal().lower())

    def stop_loading(self) -> None:
        if self._loading is not None:
            self._loading.kill()
            self._loading.wait()
            self._loading = None

    def _refusal(self) -> str:
        try:
            with redis.Redis.from_url(self.server.url, socket_timeout=2) as connection:
                connection.get("key:1")
        except redis.RedisError as error:
            return str(error)
        return ""


def _is_rewritten(told: dict[str, int]) -> bool:
    return not told["aof_rewrite_in_progress"] and not told["aof_rewrite_scheduled"]
