"""A Redis Cluster of three real masters on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import redis
from redis.cluster import ClusterNode, RedisCluster
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer, free_port

__all__ = ["three_masters", "url_of"]

_SLOTS: Final = 16_384
_PASSWORD: Final = "of-the-cluster"


class _Master(RedisServer):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, password=_PASSWORD)
        self.bus_port = free_port()

    def _config(self) -> str:
        lines = ("cluster-enabled yes", f"cluster-port {self.bus_port}")
        return super()._config() + "\n".join(lines) + "\n"


@contextmanager
def three_masters(folder: Path) -> Iterator[RedisCluster]:
    """Run three masters, each with a third of the slots; yields a client of them."""
    with ExitStack() as stack:
        masters = [_Master(folder / f"master{number}") for number in range(3)]
        admins = []
        for master in masters:
            master.start()
            stack.callback(master.stop)
            admins.append(stack.enter_context(redis.Redis.from_url(master.url)))
        for number, admin in enumerate(admins):
            begin, end = (_SLOTS * at // 3 for at in (number, number + 1))
            admin.execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
        for master in masters[1:]:
            admins[0].execute_command("CLUSTER MEET", "127.0.0.1", master.port, master.bus_port)

        def is_whole() -> bool:
            told = [admin.cluster("info") for admin in admins]
            return all(
                one["cluster_state"] == "ok" and one["cluster_known_nodes"] == "3" for one in told
            )

        wait_for(is_whole, "the three have met")
        nodes = [ClusterNode("127.0.0.1", master.port) for master in masters]
        client = RedisCluster(startup_nodes=nodes, password=_PASSWORD, protocol=2)
        stack.callback(client.close)
        yield client


def url_of(client: RedisCluster, key: str) -> str:
    """Return where a key lies, as a client of that one server needs it."""
    node = client.get_node_from_key(key)
    return f"redis://default:{_PASSWORD}@{node.host}:{node.port}/0"
