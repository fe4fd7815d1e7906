"""What readers want now, as they say it on a channel: bounded in number, whoever says what.

A want is known while it is said again. So many are known at once; those that were said first keep
their place, and later ones are turned away until one of the first is said no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis
import structlog

from qmt_protocol.demand import LEASE_S, read_series, words_of
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.keys import Keys

from .redis_link import SOCKET_TIMEOUT_S

__all__ = ["DemandListener"]

log: Final = structlog.get_logger(__name__)

_MOST_MESSAGES: Final = 10_000
_MOST_BYTES: Final = 8_000_000
"""What is heard in one look; Redis keeps the rest, and drops a listener that lags by 32 MB."""
_MOST_MARKETS: Final = 32
_SAY_EVERY_S: Final = 60.0
_SHOWN_BYTES: Final = 60
_MARKET_BYTES: Final = 9


class DemandListener:
    """Listens to readers; `look` is called each second.

    Parameters
    ----------
    connection
        Of the streams server.
    markets
        Those that are published anyway; of others so many are known at once.
    most
        Most series known at once.
    clock
        Monotonic seconds.

    Attributes
    ----------
    turned_away : dict
        Market to when (monotonic) a series of it was said last that is not looked at.
    """

    def __init__(
        self,
        connection: redis.Redis,
        keys: Keys,
        markets: Iterable[str],
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = connection
        self._channel = keys.demand_channel
        self._markets = frozenset(markets)
        self.most = most
        self._clock = clock
        self._line: redis.client.PubSub | None = None
        self._pinged = False
        self._said: dict[str, float] = {}
        self._words: dict[bytes, str] = {}
        """The same wants as they are said."""
        self.turned_away: dict[str, float] = {}
        self._foreign_word = b""
        self._foreign_words = 0
        self._next_words = 0.0

    def look(self) -> list[str]:
        """Hear what was said since the last look; return what is wanted, the oldest first.

        Raises
        ------
        redis.RedisError
            When Redis does not answer; what was wanted stays so until the next look.
        """
        try:
            self._hear()
        except redis.RedisError:
            self._hang_up()
            raise
        now = self._clock()
        for said in (self._said, self.turned_away):
            for name in [name for name, at in said.items() if now - at > LEASE_S]:
                del said[name]
                self._words.pop(name.encode(), None)
        self._report_foreign(now)
        return list(self._said)

    def close(self) -> None:
        """Listen no more."""
        self._hang_up()

    def _hear(self) -> None:
        """Read up to the answer to a PING: so a line that is dead is found out, and none waits."""
        if self._line is None:
            self._line = self._redis.pubsub()  # type: ignore[no-untyped-call]
            self._line.subscribe(self._channel)
            self._pinged = False
            # Nothing could be heard meanwhile: who wanted something has time to say so again.
            self._said = dict.fromkeys(self._said, self._clock())
        if not self._pinged:
            self._line.ping()
            self._pinged = True
        heard_bytes = 0
        for _ in range(_MOST_MESSAGES):
            message: Any = self._line.get_message(timeout=SOCKET_TIMEOUT_S)
            if message is None:
                raise redis.TimeoutError(f"no answer within {SOCKET_TIMEOUT_S:g} s")
            if message["type"] == "pong":
                self._pinged = False
                return
            if message["type"] == "message":
                heard_bytes += len(message["data"])
                self._take(message["data"])
                if heard_bytes > _MOST_BYTES:
                    return

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _take(self, message: bytes) -> None:
        now = self._clock()
        words = words_of(message)
        if not words:
            self._note_foreign(message)
        for word in words:
            known = self._words.get(word)
            if known is not None:
                self._said[known] = now
                continue
            try:
                self._add(word, now)
            except InvalidRequest:
                self._note_foreign(word)

    def _add(self, word: bytes, now: float) -> None:
        """Take a new want in, or turn it away where there are too many."""
        if len(self._said) < self.most:
            series = read_series(word)
            self._words[word] = series
            self._said[series] = now
            return
        market = word[-_MARKET_BYTES:].rpartition(b".")[2].decode("ascii", "replace")
        if market in self.turned_away:  # whatever the word may be
            self.turned_away[market] = now
            return
        read_series(word)
        others = self.turned_away.keys() - self._markets
        if market in self._markets or len(others) < _MOST_MARKETS:
            self.turned_away[market] = now

    def _note_foreign(self, word: bytes) -> None:
        self._foreign_word = self._foreign_word or word[:_SHOWN_BYTES]
        self._foreign_words += 1

    def _report_foreign(self, now: float) -> None:
        if self._foreign_words and now >= self._next_words:
            word = self._foreign_word.decode("utf-8", "replace")
            log.warning("what names no series is ignored", such_as=word, count=self._foreign_words)
            self._foreign_word, self._foreign_words = b"", 0
            self._next_words = now + _SAY_EVERY_S
