"""The Lua scripts that publish, and those that hold a market's lease."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import redis

__all__ = ["COMPLETE", "Scripts"]

COMPLETE: Final = "complete"
"""Field beside the rings' own in `acked`: the Redis ms before which every tick received by whoever
held the market is published or named, a space, and the ring that said so."""

# Takes the lease where it is free or ours. Returns holder, then what the taker must know: its
# last batch applied, the id of the feed's last entry, Redis time, and up to when all is complete.
_LEASE_LUA: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return { held } end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'NX')
local tail = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
local time = redis.call('TIME')
return {
  ARGV[1],
  redis.call('HGET', KEYS[3], ARGV[4]) or '0',
  tail[1] and tail[1][1] or '',
  time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('HGET', KEYS[3], ARGV[5]) or '',
}
"""
# Says so, if the holder's last batch is really there: the call travels behind its batches.
_COMPLETE_LUA: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[2], ARGV[5], ARGV[4])
return 1
"""
_IF_HELD: Final = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end "
_EPOCH_LUA: Final = _IF_HELD + "redis.call('SET', KEYS[2], ARGV[2]) return 1"
_RELEASE_LUA: Final = _IF_HELD + "return redis.call('DEL', KEYS[1])"


class Scripts:
    """The scripts of one connection."""

    def __init__(self, connection: redis.Redis) -> None:
        self.connection = connection
        common = _read("publish_common.lua")
        self.publish_ticks = connection.register_script(common + _read("publish_ticks.lua"))
        self.publish_bars = connection.register_script(common + _read("publish_bars.lua"))
        self.lease = connection.register_script(_LEASE_LUA)
        self.epoch = connection.register_script(_EPOCH_LUA)
        self.release = connection.register_script(_RELEASE_LUA)
        self.complete = connection.register_script(_COMPLETE_LUA)

    def load(self) -> None:
        """Give Redis the scripts that are called by their digest in pipelines."""
        for script in (self.publish_ticks, self.publish_bars, self.complete):
            self.connection.script_load(script.script)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
