"""The one door to xtquant: loading it safely, the connection's state, one lock, clean answers.

Everything that is awkward about xtdata ends here: callers get plain Python values, and every
failure is one of the project's errors. Producer and worker import this package; it imports
protocol, and it alone imports xtquant.
"""

from .door import Terminal, TerminalInfo, TradingSession

__all__ = ["Terminal", "TerminalInfo", "TradingSession"]
