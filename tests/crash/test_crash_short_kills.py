"""Every process killed once with a batch in flight, cuts, a pause, a takeover without Redis."""

from __future__ import annotations

import time
from pathlib import Path

from crash_cuts import cut_at_random
from crash_kills import finish, start_two, wait_grows, wait_holder
from crash_proxy import CuttingProxy
from crash_rig import Result, Rig
from crash_scale import SHORT
from crash_short import SEED, fail_on

LEASE_S = 2.0


def test_kills_cuts_pause_and_takeover_while_redis_is_away(tmp_path: Path) -> None:
    result = Result("short")
    with Rig(tmp_path / "rig", SEED, ticks_per_s=500, lease_s=LEASE_S) as rig:
        rig.start_gateway()
        start_two(rig)
        rig.wait_gateway()
        port = rig.server.port
        with CuttingProxy(port, SEED) as proxy:
            urls = {
                "reader-redis": rig.server.url.replace(f":{port}/", f":{proxy.port}/"),
                "reader-gateway": rig.gateway_url,
            }
            for name, url in urls.items():
                rig.start_reader(name, url, "--stored")
            for name in urls:
                wait_grows(rig, name)
            assert cut_at_random(rig, proxy, "reader-redis", SHORT.cuts) == SHORT.cuts
            assert not rig.gaps_told("reader-redis")
            for _ in range(SHORT.kills):
                kill_each_once(rig, urls)
            pause_the_holder(rig)
            take_over_while_redis_is_away(rig)
            finish(rig, result, list(urls), late_allowed=True)
    fail_on(result, tmp_path)
    assert rig.kills["redis"] == SHORT.kills + 1
    assert result.figures["streams"]["stored"] > 5_000


def kill_each_once(rig: Rig, urls: dict[str, str]) -> None:
    """Redis, standby, holder, gateway and two readers, each with a batch in flight."""
    rig.in_flight()
    rig.kill_redis()
    rig.start_redis()
    rig.wait_flowing()
    holder = wait_holder(rig)
    for name in ("producer1" if holder == "producer2" else "producer2", holder):
        rig.in_flight()
        rig.kill(name)
        rig.start_producer(name)
        rig.wait_subscribed(2)
    rig.in_flight()
    rig.kill("gateway")
    rig.start_gateway()
    for name in ("reader-redis", "reader-gateway"):
        rig.in_flight()
        rig.kill(name)
        rig.start_reader(name, urls[name], "--stored")
    rig.wait_flowing()


def pause_the_holder(rig: Rig) -> None:
    """Past its lease; it goes on when another holds it."""
    name = wait_holder(rig)
    rig.in_flight()
    rig.pause(name)
    time.sleep(rig.lease_s + 0.5)
    rig.wait_flowing()
    rig.resume(name)
    rig.in_flight()


def take_over_while_redis_is_away(rig: Rig) -> None:
    """Both rings hold ticks that Redis lacks when the holder dies."""
    name = wait_holder(rig)
    rig.in_flight()
    rig.kill_redis()
    time.sleep(1.5)
    rig.in_flight()
    rig.kill(name)
    rig.start_redis()
    rig.wait_flowing()
