"""Prints the Shanghai exchange's holidays as exchange_calendars has them: ``python -m`` this.

A process of its own, because the library brings pandas along: 100 MB that a producer would keep
for a few hundred dates.
"""

from __future__ import annotations

import json
import sys
import warnings

__all__ = ["NOT_INSTALLED", "main"]

NOT_INSTALLED = 3
"""Exit code where the library is missing."""


def main() -> int:
    """Write ``{"first", "last", "holidays"}``, days as ``YYYYMMDD``; return the exit code."""
    # What pandas deprecates in it is not ours to change.
    warnings.simplefilter("ignore")
    try:
        import numpy as np
        import pandas as pd
        from exchange_calendars.exchange_calendar_xshg import XSHGExchangeCalendar
    except ImportError:
        return NOT_INSTALLED
    first, last = XSHGExchangeCalendar.bound_min(), XSHGExchangeCalendar.bound_max()
    sessions = XSHGExchangeCalendar(start=first, end=last).sessions
    weekdays = pd.bdate_range(first, last)
    holidays = weekdays[~np.isin(weekdays.to_numpy(), sessions.to_numpy())]
    document = {
        "first": int(first.strftime("%Y%m%d")),
        "last": int(last.strftime("%Y%m%d")),
        "holidays": [int(day.strftime("%Y%m%d")) for day in holidays],
    }
    sys.stdout.write(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
