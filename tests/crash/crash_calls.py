"""A TCP relay before Redis that knows calls: one can be held back, cut, or lose its answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final

__all__ = ["CallProxy"]

_CHUNK: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)
_ARRAYS: Final = b"*~>"
_TEXTS: Final = b"$=!"


class CallProxy:
    """Relays loopback connections to a Redis server; a context manager.

    A call's name is that of the library's function (``append``, ``file``, ``lease`` ...), of
    anything else the command's (``hgetall``). What the proxy has taken stays under way when its
    sender is gone, as bytes in a network do.

    Attributes
    ----------
    lost : Counter of str
        Answers that Redis gave and nobody got, on purpose, by call.
    cut : Counter of str
        Calls of which Redis got one half.
    answered : Counter of (str, str)
        Answers by call and what they begin with: the state of a function, an error's first word.
    too_late : Counter of (str, str)
        Those of them whose caller was gone.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._turn = threading.Condition()
        self._connections: set[_Connection] = set()
        self._held: set[str] = set()
        self._to_catch: Counter[str] = Counter()
        self._caught: set[object] = set()
        self._held_answers: set[str] = set()
        self._to_lose: Counter[str] = Counter()
        self._to_cut: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.too_late: Counter[tuple[str, str]] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CallProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self.let_go()
        for connection in list(self._connections):
            connection.drop()

    def hold(self, call: str) -> None:
        """Keep calls from Redis, and all that follows over the same connection."""
        with self._turn:
            self._held.add(call)

    def catch(self, call: str) -> None:
        """Keep the next such call alone; its sender's next connection is served."""
        with self._turn:
            self._to_catch[call] += 1

    def hold_answers(self, call: str) -> None:
        """Let calls be done, and keep their answers."""
        with self._turn:
            self._held_answers.add(call)

    def let_go(self, call: str = "") -> None:
        """Let a call and its answers pass that are held; without a name everything."""
        with self._turn:
            if not call:
                self._caught.clear()
            for held in (self._held, self._held_answers):
                held -= {call} if call else set(held)
            self._turn.notify_all()

    def lose(self, call: str) -> None:
        """Reset the connection when Redis has answered the next such call, and keep the answer."""
        with self._turn:
            self._to_lose[call] += 1

    def cut_within(self, call: str) -> None:
        """Reset the connection when Redis has the first half of the next such call."""
        with self._turn:
            self._to_cut[call] += 1

    def wanted(self, call: str) -> int:
        """Return how many such calls are still to be cut, or to lose their answers."""
        with self._turn:
            return self._to_lose[call] + self._to_cut[call]

    def waiting(self, call: str) -> int:
        """Return how many such calls, or answers to them, are held now."""
        with self._turn:
            return self._waiting[call]

    # -- what connections ask -----------------------------------------------------------------

    def pass_on(self, call: str) -> bool:
        """Return once a call may be passed on; false where it is to be cut."""
        with self._turn:
            if self._to_catch[call]:
                self._to_catch[call] -= 1
                self._caught.add(token := object())
                self._waiting[call] += 1
                self._turn.wait_for(lambda: token not in self._caught)
                self._waiting[call] -= 1
        self._wait(call, self._held)
        return not self._take(call, self._to_cut, self.cut)

    def give_back(self, call: str, state: str) -> bool:
        """Return once an answer may be given; false where it is to be lost."""
        with self._turn:
            self.answered[call, state] += 1
        self._wait(call, self._held_answers)
        return not self._take(call, self._to_lose, self.lost)

    def missed(self, call: str, state: str) -> None:
        """Count an answer that came too late."""
        with self._turn:
            self.too_late[call, state] += 1

    def ended(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def _wait(self, call: str, held: set[str]) -> None:
        with self._turn:
            self._waiting[call] += 1
            self._turn.wait_for(lambda: call not in held)
            self._waiting[call] -= 1

    def _take(self, call: str, wanted: Counter[str], done: Counter[str]) -> bool:
        with self._turn:
            if not wanted[call]:
                return False
            wanted[call] -= 1
            done[call] += 1
            return True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            connection = _Connection(self, client, server)
            self._connections.add(connection)
            connection.start()


class _Connection:
    """One client's connection and its own one to the server."""

    def __init__(self, proxy: CallProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._asked: deque[str] = deque()
        self._lock = threading.Lock()
        self._client_gone = self._dropped = False

    def start(self) -> None:
        """Begin to relay."""
        for pump in (self._calls, self._answers):
            threading.Thread(target=pump, daemon=True).start()

    def drop(self, *, reset: bool = True) -> None:
        """Close both ends; nothing of what is under way arrives."""
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._proxy.ended(self)

    def _calls(self) -> None:
        frames = _Frames()
        try:
            while data := self._received():
                for frame in frames.add(data):
                    call = _call_of(frame)
                    if not self._proxy.pass_on(call):
                        self._server.sendall(frame[: len(frame) // 2])
                        self.drop()
                        return
                    self._asked.append(call)
                    self._server.sendall(frame)
        except OSError:
            self.drop(reset=False)
            return
        with self._lock:
            self._client_gone = True
            done = not self._asked
        if done:
            self.drop(reset=False)

    def _received(self) -> bytes:
        """Return what the client sent; nothing once it is gone, however it went."""
        try:
            return self._client.recv(_CHUNK)
        except OSError:
            return b""

    def _answers(self) -> None:
        frames = _Frames()
        try:
            while data := self._server.recv(_CHUNK):
                for frame in frames.add(data):
                    call = self._asked[0] if self._asked else ""
                    state = _state_of(frame)
                    if not self._proxy.give_back(call, state):
                        self.drop()
                        return
                    self._deliver(frame, call, state)
        except OSError:
            pass
        self.drop(reset=False)

    def _is_gone(self) -> bool:
        """Whether the client has closed, with nothing more to be read of it."""
        try:
            return not self._client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _deliver(self, frame: bytes, call: str, state: str) -> None:
        self._client_gone = self._client_gone or self._is_gone()
        try:
            self._client.sendall(frame)
        except OSError:
            self._client_gone = True
        with self._lock:
            if self._asked:
                self._asked.popleft()
            gone = self._client_gone
        if gone:
            self._proxy.missed(call, state)
            if not self._asked:
                self.drop(reset=False)


class _Frames:
    """Cuts a stream of RESP into whole values."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._left = 1  # values still to come before the outermost one is whole

    def add(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the values that are whole now."""
        self._data += data
        while (end := self._data.find(b"\r\n", self._at)) >= 0:
            kind, told = self._data[self._at], self._data[self._at + 1 : end]
            after = end + 2
            if kind in _TEXTS and int(told) >= 0:
                after += int(told) + 2
                if after > len(self._data):
                    return
            elif kind in _ARRAYS or kind == ord("%"):
                self._left += max(int(told), 0) * (2 if kind == ord("%") else 1)
            self._at = after
            self._left -= 1
            if not self._left:
                yield bytes(self._data[:after])
                del self._data[:after]
                self._at, self._left = 0, 1


def _call_of(frame: bytes) -> str:
    words = frame.split(b"\r\n", 6)
    name = words[2].decode("ascii", "replace").lower() if len(words) > 2 else ""
    if name == "fcall":
        return words[4].decode("ascii", "replace").partition("_")[2]
    return name


def _state_of(frame: bytes) -> str:
    """Return an error's first word, or the first text of an answer."""
    lines = frame.split(b"\r\n", 3)
    if lines[0][:1] in b"-!":
        told = lines[0][1:] if lines[0][:1] == b"-" else lines[1]
        return told.split(b" ", 1)[0].decode("ascii", "replace")
    if lines[0][:1] == b"*" and lines[1][:1] == b"$" and len(lines) > 2:
        return lines[2][:32].decode("ascii", "replace")
    return ""
