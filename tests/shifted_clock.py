"""Processes whose wall clock runs ahead, or steps: New Year before it comes, a clock set right.

libfaketime 0.9.10 does not serve: it shifts the monotonic clock too, by which CPython 3.11 waits in
a call that it does not know (sem_clockwait), so that no wait ends.
"""

from __future__ import annotations

import datetime as dt
import mmap
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import pytest

__all__ = ["NO_COMPILER", "SteppedClock", "shifted"]

NO_COMPILER: Final = "shifting a process's clock needs Linux and a C compiler"
_CHINA: Final = ZoneInfo("Asia/Shanghai")
_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static long ahead_s(void) {
    static long seconds, known;
    static const volatile int64_t *told;
    if (!known) {
        const char *text = getenv("TEST_CLOCK_AHEAD_S"), *path = getenv("TEST_CLOCK_FILE");
        seconds = text ? atol(text) : 0;
        if (path) {
            void *page = mmap(NULL, sizeof *told, PROT_READ, MAP_SHARED, open(path, O_RDONLY), 0);
            if (page == MAP_FAILED) abort();
            told = page;
        }
        known = 1;
    }
    return told ? (long)*told : seconds;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    REAL(clock_gettime);
    int failed = real(clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += ahead_s();
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    REAL(gettimeofday);
    int failed = real(at, zone);
    if (!failed) at->tv_sec += ahead_s();
    return failed;
}

time_t time(time_t *at) {
    REAL(time);
    time_t now = real(NULL) + ahead_s();
    if (at) *at = now;
    return now;
}

/* CPython 3.10 waits until a moment of the wall clock. */
int sem_timedwait(sem_t *one, const struct timespec *until) {
    REAL(sem_timedwait);
    struct timespec moment = *until;
    moment.tv_sec -= ahead_s();
    return real(one, &moment);
}
"""


def shifted(folder: Path, moment: str) -> dict[str, str]:
    """Return the variables with which a process, and all that it starts, begins at a moment.

    Parameters
    ----------
    folder
        Where the library is made that does it.
    moment
        China time, such as ``2027-01-04 10:00:00``.
    """
    if _compiler() is None:
        pytest.skip(NO_COMPILER)
    library = _library(folder)
    begins = dt.datetime.strptime(moment, "%Y-%m-%d %H:%M:%S").replace(tzinfo=_CHINA)
    ahead_s = round(begins.timestamp() - time.time())
    return {"LD_PRELOAD": str(library), "TEST_CLOCK_AHEAD_S": str(ahead_s)}


class SteppedClock:
    """A wall clock that steps under the processes that are started with `env`.

    Raises
    ------
    RuntimeError
        Where there is no compiler.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "ahead"
        file.write_bytes(struct.pack("q", 0))
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), 0)
        self.env: Final = {
            "LD_PRELOAD": str(_library(folder)),
            "TEST_CLOCK_FILE": str(file),
        }

    def set_ahead(self, seconds: int) -> None:
        """Set it so far ahead of the machine's, from one moment to the next."""
        struct.pack_into("q", self._page, 0, seconds)

    def close(self) -> None:
        """Let go of the file; processes keep what was set."""
        self._page.close()


def _compiler() -> str | None:
    return (shutil.which("cc") or shutil.which("gcc")) if sys.platform.startswith("linux") else None


def _library(folder: Path) -> Path:
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(NO_COMPILER)
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    return library
