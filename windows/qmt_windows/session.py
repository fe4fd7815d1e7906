"""Hears on Windows that the session ends, or that somebody asks the process to close.

A console program is not told of log-off and shutdown once user32 is loaded into it, and some
library always loads it. Every program with a window is told; so there is one nobody sees. It is
also what ``taskkill`` without ``/F`` and Task Scheduler's *End* speak to.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import structlog

__all__ = ["watch_session"]

_log: Final = structlog.get_logger(__name__)

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _CLOSE: Final = 0x0010
    _QUERY_END_SESSION: Final = 0x0011
    _END_SESSION: Final = 0x0016
    _CLASS: Final = "QMTBridgeSession"
    _READY_S: Final = 2.0

    _Result = ctypes.c_ssize_t
    _Procedure = ctypes.WINFUNCTYPE(
        _Result, wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM
    )

    class _WindowClass(ctypes.Structure):
        _fields_ = (
            ("style", wintypes.UINT),
            ("procedure", _Procedure),
            ("class_extra", ctypes.c_int),
            ("window_extra", ctypes.c_int),
            ("instance", wintypes.HINSTANCE),
            ("icon", wintypes.HANDLE),
            ("cursor", wintypes.HANDLE),
            ("background", wintypes.HANDLE),
            ("menu", wintypes.LPCWSTR),
            ("name", wintypes.LPCWSTR),
        )

    def watch_session(stop: Callable[[], None], stopped: threading.Event, hold_s: float) -> bool:
        """Call `stop` when the session ends or the process is asked to close.

        Parameters
        ----------
        stop
            Asks for the end; called in a thread of its own.
        stopped
            Set when everything has ended.
        hold_s
            How long the end of the session is held up until then, at most.

        Returns
        -------
        bool
            Whether it will be heard: there is no window where there is no desktop.
        """
        made: list[bool] = []
        ready = threading.Event()
        threading.Thread(
            target=_run, args=(stop, stopped, hold_s, made, ready), name="session", daemon=True
        ).start()
        ready.wait(_READY_S)
        return bool(made)

    def _run(
        stop: Callable[[], None],
        stopped: threading.Event,
        hold_s: float,
        made: list[bool],
        ready: threading.Event,
    ) -> None:
        user = ctypes.WinDLL("user32", use_last_error=True)
        user.DefWindowProcW.restype = _Result
        user.DefWindowProcW.argtypes = [
            *(wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM)
        ]
        user.CreateWindowExW.restype = wintypes.HWND
        user.CreateWindowExW.argtypes = [
            *(wintypes.DWORD, wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int),
            *(wintypes.HWND, wintypes.HANDLE, wintypes.HINSTANCE, wintypes.LPVOID),
        ]

        def procedure(window: Any, message: int, word: int, long: int) -> int:
            if message == _QUERY_END_SESSION:
                return 1
            if message == _CLOSE:
                stop()
                return 0
            if message == _END_SESSION:
                if word:
                    stop()
                    # The process is ended when this returns.
                    stopped.wait(hold_s)
                return 0
            return int(user.DefWindowProcW(window, message, word, long))

        kind = _WindowClass(procedure=_Procedure(procedure), name=_CLASS)
        user.RegisterClassW(ctypes.byref(kind))
        window = user.CreateWindowExW(
            0, _CLASS, "QMT Bridge", 0, 0, 0, 0, 0, None, None, None, None
        )
        if window:
            made.append(True)
        else:
            _log.info("no window: log-off is not heard", error=ctypes.get_last_error())
        ready.set()
        message = wintypes.MSG()
        while window and user.GetMessageW(ctypes.byref(message), None, 0, 0) > 0:
            user.DispatchMessageW(ctypes.byref(message))

else:

    def watch_session(stop: Callable[[], None], stopped: threading.Event, hold_s: float) -> bool:
        """Call `stop` when the session ends (Windows)."""
        return False
