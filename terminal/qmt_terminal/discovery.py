"""Which terminals run on this machine, and which of them is meant.

A terminal tells of itself in ``%USERPROFILE%\\.xtquant\\<id>``: ``xtdata.cfg`` has its port and
folder, and ``running_status`` is a file that it holds open. xtquant's own search tries to delete
that file; this one only asks whether it could be deleted.
"""

from __future__ import annotations

import json
import ntpath
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import ConfigurationError, WrongTerminal

from .failures import not_connected

__all__ = ["Instance", "addresses", "broker_of", "check_place", "instances", "is_below", "root_of"]

LOCAL: Final = "127.0.0.1"
DEFAULT_PORT: Final = 58610
_EVERYWHERE: Final = ("0.0.0.0", "localhost", "")  # noqa: S104 - told by terminals, not bound to
_INNER: Final = frozenset({"bin.x64", "bin", "userdata_mini", "userdata", "datadir"})
"""Folders of a terminal that people and terminals name in place of the terminal's own."""
_PRODUCT: Final = re.compile(
    r"[A-Za-z]?QMT|iQuant|XtQuant|mini|迅投|极速策略|极速|策略|量化|实盘|模拟|仿真|测试|独立|投研"
    r"|智能|交易|终端|客户端|平台|系统|端|版|个人|[\s\d._()（）-]",
    re.IGNORECASE,
)
_CHINESE: Final = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Instance:
    """A terminal as its own file tells."""

    host: str
    port: int
    client_type: str
    """``research`` and so on, as the terminal writes it."""
    data_dir: str
    root_dir: str
    running: bool

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """The terminal's folder, as far as its file tells; ``""`` when it does not."""
        return root_of(next((one for one in (self.root_dir, self.data_dir) if _full(one)), ""))

    def in_folder(self, path: Path | str) -> bool:
        """Whether it belongs to the terminal in a folder."""
        places = [one for one in (self.root_dir, self.data_dir) if _full(one)]
        return any(is_below(place, path) for place in places)


def instances() -> list[Instance]:
    """Return the terminals that this user ever ran and that left their file, in no order."""
    home = os.environ.get("USERPROFILE")
    if not home:
        return []
    try:
        folders = [entry for entry in os.scandir(Path(home, ".xtquant")) if entry.is_dir()]
    except OSError:
        return []
    found = [_read(Path(folder.path)) for folder in folders]
    return [one for one in found if one is not None]


def _read(folder: Path) -> Instance | None:
    try:
        written = (folder / "xtdata.cfg").read_bytes()
        document: Any = json.loads(_decoded(written))
        port = int(document["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not 0 < port < 65_536:
        return None
    host = str(document.get("ip") or "")
    return Instance(
        host=LOCAL if host in _EVERYWHERE else host,
        port=port,
        client_type=str(document.get("client_type") or ""),
        data_dir=str(document.get("data_dir") or ""),
        root_dir=str(document.get("root_dir") or ""),
        running=_held(folder / "running_status"),
    )


def _decoded(written: bytes) -> str:
    try:
        return written.decode("utf-8-sig")
    except UnicodeDecodeError:
        return written.decode("gb18030")


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _DELETE: Final = 0x0001_0000
    _SHARE_ALL: Final = 0x7
    _OPEN_EXISTING: Final = 3
    _NORMAL: Final = 0x80
    _HELD: Final = (5, 32)  # access denied, sharing violation: what makes a deletion fail
    _INVALID: Final = ctypes.c_void_p(-1).value

    def _held(file: Path) -> bool:
        """Whether another process keeps a file from being deleted; nothing is deleted."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        opened = kernel.CreateFileW
        opened.restype = ctypes.c_void_p
        opened.argtypes = (
            wintypes.LPCWSTR,
            wintypes.DWORD,
            wintypes.DWORD,
            ctypes.c_void_p,
            wintypes.DWORD,
            wintypes.DWORD,
            ctypes.c_void_p,
        )
        handle = opened(str(file), _DELETE, _SHARE_ALL, None, _OPEN_EXISTING, _NORMAL, None)
        if handle == _INVALID:
            return ctypes.get_last_error() in _HELD
        kernel.CloseHandle(ctypes.c_void_p(handle))
        return False

else:
    import fcntl

    def _held(file: Path) -> bool:
        """Whether another process has locked a file: no terminal runs here, only its stand-ins."""
        try:
            with file.open("ab") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


# -- folders ------------------------------------------------------------------------------------


def _full(path: str) -> bool:
    return bool(path) and (os.path.isabs(path) or ntpath.isabs(path))


def root_of(path: str) -> str:
    """Return the terminal's own folder for one of those in it, or for one of its programs."""
    while path:
        head, tail = ntpath.split(path.rstrip("\\/"))
        if not head or not (tail.lower() in _INNER or tail.lower().endswith(".exe")):
            break
        path = head
    return path


def is_below(path: str, folder: Path | str) -> bool:
    """Whether a path is a folder or lies in it, whichever way either is written.

    Links and junctions are followed; a Windows path on another system is compared by its text.
    """
    sought = root_of(str(folder))
    if not sought:
        return False
    foreign = os.name != "nt" and bool(ntpath.splitdrive(path)[0])
    flavour: Any = ntpath if foreign else os.path

    def plain(one: str) -> str:
        return str(flavour.normcase(flavour.normpath(one))).rstrip("\\/")

    forms = [(plain(path), plain(sought))]
    if not foreign:
        forms.append((plain(os.path.realpath(path)), plain(os.path.realpath(sought))))
    return any(one == other or one.startswith(other + flavour.sep) for one, other in forms)


def broker_of(place: str) -> str:
    """Return the broker's name out of a terminal's folder; ``""`` where it has none.

    Folders are named like ``D:\\国金证券QMT交易端``.
    """
    name = ntpath.basename(root_of(place).rstrip("\\/"))
    broker = _PRODUCT.sub("", name)
    return broker if _CHINESE.search(broker) else ""


# -- the one that is meant ----------------------------------------------------------------------


def addresses(host: str, port: int | None, path: Path | None) -> list[tuple[str, int]]:
    """Return where to look for the terminal, the likeliest place first; never none.

    Parameters
    ----------
    host, port, path
        As set; ``""`` and ``None`` are not.

    Raises
    ------
    ConfigurationError
        When several terminals run and nothing says which one is meant.
    TerminalNotConnected
        When the one in `path` does not run and another has the usual port.
    """
    if port is not None:
        return [(host or LOCAL, port)]
    found = instances()
    running = list({(one.host, one.port): one for one in found if one.running}.values())
    if path is None:
        if len(running) > 1:
            raise ConfigurationError(
                f"{len(running)} terminals run here: {_listed(running)}.",
                hint="Set QMT_TERMINAL_PATH to the folder of the one to use.",
                terminals=[one.place or one.address for one in running],
            )
        return [(one.host, one.port) for one in running] or [(LOCAL, DEFAULT_PORT)]
    # One that seems not to run is tried too, last: what answers is checked anyhow.
    there = sorted((one for one in found if one.in_folder(path)), key=lambda one: not one.running)
    if there:
        return list(dict.fromkeys((one.host, one.port) for one in there))
    if any(one.port == DEFAULT_PORT for one in running):
        raise not_connected(f"none runs in {path}, only {_listed(running)}")
    return [(LOCAL, DEFAULT_PORT)]


def _listed(running: Sequence[Instance]) -> str:
    return "; ".join(f"{one.place or one.client_type or '?'} at {one.address}" for one in running)


def check_place(address: str, document: Sequence[str], path: Path) -> None:
    """Check that what answers is the terminal in a folder.

    Parameters
    ----------
    told
        The folders that it names as its own, ``""`` where it names none.

    Raises
    ------
    WrongTerminal
        When none of them lies in `path`.
    """
    places = [one for one in document if one]
    if any(is_below(one, path) for one in places):
        return
    where = " and ".join(places) or "a folder that it does not tell"
    raise WrongTerminal(
        f"The terminal at {address} is in {where}, not in {path}.",
        hint="Start the terminal in that folder and log in, or correct QMT_TERMINAL_PATH.",
        reason=f"the terminal at {address} is in {where}, not in {path}",
        path=str(path),
        found=places,
    )
