"""Questions that others on this terminal may notice, asked only on demand."""

from __future__ import annotations

import socket
import time
from typing import Any, Final

from .question import EQUAL, Answer, Question
from .session import STOCK, Session

__all__ = ["DISTURB_QUESTIONS"]

_MOST: Final = 320
_PERSON_S: Final = 600.0
_SECTOR: Final = "沪深A股"


def _ask_limit(session: Session) -> Answer:
    """Subscribe to single codes until the terminal refuses, then end all of them."""
    codes = list(session.xtdata.get_stock_list_in_sector(_SECTOR))[:_MOST]
    numbers: list[int] = []
    refused: str | None = None
    try:
        for code in codes:
            try:
                number = int(session.xtdata.subscribe_quote(code, "1m", "", "", 0, None))
            except Exception as error:  # noqa: BLE001 - how it refuses is the answer
                refused = f"raises {type(error).__name__}"
                break
            if number < 0:
                refused = str(number)
                break
            numbers.append(number)
    finally:
        for number in numbers:
            session.xtdata.unsubscribe_quote(number)
    return Answer(
        {
            "subscriptions": len(numbers) if refused else f"{len(numbers)} or more",
            "refused_by": refused,
        }
    )


class _Watch:
    """The time of the newest push of a subscription."""

    def __init__(self) -> None:
        self.pushes = 0
        self.at_s = 0.0

    def __call__(self, _push: Any) -> None:
        self.pushes += 1
        self.at_s = time.monotonic()


def _restart(*, calls: bool) -> Any:
    def ask(session: Session) -> Answer:
        facts = ("resumes", "client_is_replaced", "connected_again")
        if not session.continuous:
            return Answer(dict.fromkeys(facts), {"why": "no pushes are due now"})
        host, _, port = str(session.client.get_peer_addr()).rpartition(":")
        address = (host or "127.0.0.1", int(port))
        before, watch = session.client, _Watch()
        session.xtdata.subscribe_whole_quote([STOCK, "600519.SH", "000001.SH"], watch)
        if not session.wait_until(lambda: watch.pushes > 1, 30.0):
            return Answer(dict.fromkeys(facts), {"why": "no pushes before the restart"})
        session.ask_person("restart")
        if not session.wait_until(lambda: not before.is_connected(), _PERSON_S):
            return Answer(dict.fromkeys(facts), {"why": "the terminal was not restarted"})
        gone_s = time.monotonic()
        if not session.wait_until(lambda: _listens(address), _PERSON_S):
            return Answer(dict.fromkeys(facts), {"why": "the terminal did not come back"})
        back_s = time.monotonic()
        if calls:
            session.wait_until(lambda: _answers(session), 120.0)
        settle_s = float(session.options["settle_s"])
        resumed = session.wait_until(lambda: watch.at_s > back_s, settle_s)
        return Answer(
            {
                "resumes": resumed,
                "client_is_replaced": session.xtdata.get_client() is not before if calls else None,
                "connected_again": bool(before.is_connected()),
            },
            {"away_s": round(back_s - gone_s, 1), "listened_s": settle_s},
        )

    return ask


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=1.0):
            return True
    except OSError:
        time.sleep(0.5)
        return False


def _answers(session: Session) -> bool:
    try:
        return bool(session.xtdata.get_full_tick([STOCK]))
    except Exception:  # noqa: BLE001 - not yet back
        time.sleep(1.0)
        return False


_FACTS: Final = {"resumes": EQUAL, "client_is_replaced": EQUAL, "connected_again": EQUAL}

DISTURB_QUESTIONS: Final = (
    Question(
        "single_limit",
        "How many single subscriptions the terminal takes, and how it refuses one more",
        "单股订阅上限及超限时的表现",
        _ask_limit,
        {"subscriptions": EQUAL, "refused_by": EQUAL},
        limit_s=120.0,
        disturbs=True,
    ),
    Question(
        "restart_without_a_call",
        "Do pushes resume after the terminal's restart, with no call in between?",
        "终端重启后（其间不调用任何函数）推送是否恢复",
        _restart(calls=False),
        _FACTS,
        limit_s=1500.0,
        disturbs=True,
    ),
    Question(
        "restart_with_a_call",
        "Do pushes resume after the terminal's restart, with one call in between?",
        "终端重启后（其间调用一次函数）推送是否恢复",
        _restart(calls=True),
        _FACTS,
        limit_s=1500.0,
        disturbs=True,
    ),
)
