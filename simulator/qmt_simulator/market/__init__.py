"""The market core: instruments, ticks and bars as one pure function of seed and time.

Nothing here keeps state or does I/O: a market that is restarted goes on where it was. Daily bars
come first; minutes are split from them and ticks from minutes, so that all agree exactly. It is
imported by the simulated terminal and by tests, as their oracle, and imports nothing of the
project.
"""

from qmt_simulator.market.market import Market
from qmt_simulator.market.records import Bars, Dividend, Ticks

__all__ = ["Bars", "Dividend", "Market", "Ticks"]
