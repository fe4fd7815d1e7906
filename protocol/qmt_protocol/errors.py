"""Every error that QMT Bridge raises on purpose.

::

    QMTError
    ├── InvalidRequest            an argument is wrong; nothing was done
    │   ├── InvalidCode           a code that is not <symbol>.<MARKET>
    │   └── BadFile               a file to import that is not what it should be
    ├── NotFound                  the request was right, the thing does not exist
    │   ├── InstrumentNotFound
    │   ├── SectorNotFound
    │   └── JobNotFound
    ├── HistoryMissing            bars are not in the terminal's cache and were not downloaded
    ├── DownloadIncomplete        a download ended and the range still cannot be read back
    ├── Unavailable               a part of the bridge is away; try again later
    │   ├── TerminalNotConnected
    │   │   └── WrongTerminal     one answers, and it is not the one that is set
    │   ├── NoWorker
    │   ├── NoProducer
    │   ├── RedisUnavailable
    │   ├── WrongVersion          what lies in Redis is of another version of the wire
    │   ├── GatewayUnavailable
    │   ├── Overloaded            the gateway holds as much as it may for those who do not read
    │   └── ArchiveUnavailable
    ├── TerminalUnsupported       this terminal or edition lacks the function
    ├── TerminalRefused           the terminal answered with an error of its own
    ├── TimedOut                  no answer within the stated time
    ├── JobFailed                 a job ended without a result, for a reason not named above
    ├── Gap                       ticks are missing between two positions
    ├── ArchiveDamaged            a file of the archive that cannot be read
    ├── CodecError                bytes that are not what the schema says
    ├── EncodeError               a tick or bar that the schema cannot hold
    ├── AccessDenied              key missing, wrong, expired or revoked
    │   ├── ScopeMissing          the key is right and may not do this
    │   ├── HostRefused           called by a name that is not the gateway's
    │   └── OriginRefused         a page of another site asked, without a key
    ├── LimitExceeded             more than a key may have, or faster
    ├── WrongProcess              a client made before a fork is used in the child
    └── ConfigurationError        this process cannot start as it is configured
        └── WrongTimezone

An error says what happened (``message``), what to do (``hint``) and carries its facts as
attributes. The same three travel through jobs and HTTP and are rebuilt on the other side.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

__all__ = [
    "AccessDenied",
    "ArchiveDamaged",
    "ArchiveUnavailable",
    "BadFile",
    "CodecError",
    "ConfigurationError",
    "DownloadIncomplete",
    "EncodeError",
    "Gap",
    "GatewayUnavailable",
    "HistoryMissing",
    "HostRefused",
    "InstrumentNotFound",
    "InvalidCode",
    "InvalidRequest",
    "JobFailed",
    "JobNotFound",
    "LimitExceeded",
    "NoProducer",
    "NoWorker",
    "NotFound",
    "OriginRefused",
    "Overloaded",
    "QMTError",
    "RedisUnavailable",
    "ScopeMissing",
    "SectorNotFound",
    "TerminalNotConnected",
    "TerminalRefused",
    "TerminalUnsupported",
    "TimedOut",
    "Unavailable",
    "WrongProcess",
    "WrongTerminal",
    "WrongTimezone",
    "WrongVersion",
    "error_from_dict",
]

_BY_SLUG: dict[str, type[QMTError]] = {}


class QMTError(Exception):
    """Base of all errors of QMT Bridge.

    Parameters
    ----------
    message
        What happened, naming the code, key or argument concerned.
    hint
        What the reader can do about it.
    **data
        Facts of the case, JSON-serialisable; each becomes an attribute.
    """

    slug: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "slug" in cls.__dict__:  # one without a slug of its own is told as its parent
            _BY_SLUG[cls.slug] = cls

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data
        self.__dict__.update(data)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return error_from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"error", "message", "hint", "data"}``, ready for JSON."""
        return {
            "error": self.slug,
            "message": self.message,
            "hint": self.hint,
            "data": self.data,
        }


_LONGEST: Final = 2_000
_OWN: Final = frozenset({*dir(QMTError("")), "self"})
"""Names that no fact may take."""


def error_from_dict(document: dict[str, Any], unknown: type[QMTError] = QMTError) -> QMTError:
    """Rebuild an error from :meth:`QMTError.to_dict`; an unknown kind becomes `unknown`.

    The document may be anybody's: what would stand in the error's own way is left out, and its
    texts are cut.
    """
    kind = _BY_SLUG.get(str(document.get("error", ""))[:_LONGEST], unknown)
    data = document.get("data")
    facts = {
        name: value
        for name, value in (data.items() if isinstance(data, dict) else ())
        if isinstance(name, str) and name not in _OWN and _may_be(kind, name, value)
    }
    return kind(
        str(document.get("message") or "unknown error")[:_LONGEST],
        hint=str(document.get("hint") or "")[:_LONGEST],
        **facts,
    )


def _may_be(kind: type[QMTError], name: str, value: Any) -> bool:
    """Whether a fact is of the kind that its error promises."""
    promised = kind.__annotations__.get(name)
    if promised == "list[str]":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if promised == "int | None":
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    return True


class InvalidRequest(QMTError):
    """An argument is wrong; nothing was done."""

    slug = "invalid-request"
    http_status = 422


class InvalidCode(InvalidRequest):
    """A code that is not ``<symbol>.<MARKET>``."""

    slug = "invalid-code"


class NotFound(QMTError):
    """The request was right, but the thing does not exist."""

    slug = "not-found"
    http_status = 404


class InstrumentNotFound(NotFound):
    """The terminal knows no such instrument."""

    slug = "instrument-not-found"
    codes: list[str]


class SectorNotFound(NotFound):
    """The terminal knows no such sector."""

    slug = "sector-not-found"


class JobNotFound(NotFound):
    """No job of that id: it never was, or its result has expired."""

    slug = "job-not-found"


class HistoryMissing(QMTError):
    """Bars are not in the terminal's cache and were not downloaded."""

    slug = "history-missing"
    http_status = 409
    codes: list[str]


class DownloadIncomplete(QMTError):
    """A download ended and its range still cannot be read back whole."""

    slug = "download-incomplete"
    http_status = 502


class Unavailable(QMTError):
    """A part of the bridge is away; the same request may succeed later."""

    slug = "unavailable"
    http_status = 503


class TerminalNotConnected(Unavailable):
    """The worker or producer runs, but no QMT terminal answers it."""

    slug = "terminal-not-connected"


class WrongTerminal(TerminalNotConnected):
    """A terminal answers, but not the one in the folder that is set."""

    slug = "wrong-terminal"


class NoWorker(Unavailable):
    """No worker serves the job queue."""

    slug = "no-worker"
    last_seen_ms: int | None


class NoProducer(Unavailable):
    """No producer publishes ticks."""

    slug = "no-producer"
    last_seen_ms: int | None


class RedisUnavailable(Unavailable):
    """Redis does not answer, or refuses to serve."""

    slug = "redis-unavailable"


class WrongVersion(Unavailable):
    """What lies in Redis is of another version of the wire than this program."""

    slug = "wrong-version"


class GatewayUnavailable(Unavailable):
    """The gateway does not answer."""

    slug = "gateway-unavailable"


class Overloaded(Unavailable):
    """The gateway holds as much as it may for callers who do not read."""

    slug = "overloaded"
    limit_bytes: int


class TerminalUnsupported(QMTError):
    """This terminal, or its edition or account, lacks the function."""

    slug = "terminal-unsupported"
    http_status = 501


class TerminalRefused(QMTError):
    """The terminal answered with an error of its own."""

    slug = "terminal-refused"
    http_status = 502


class TimedOut(QMTError):
    """No answer came within the stated time."""

    slug = "timed-out"
    http_status = 504


class JobFailed(QMTError):
    """A job ended without a result."""

    slug = "job-failed"
    http_status = 502


class Gap(QMTError):
    """Ticks between two positions can no longer be had."""

    slug = "gap"
    http_status = 410


class ArchiveUnavailable(Unavailable):
    """The archive's folder or bucket cannot be reached, read or written."""

    slug = "archive-unavailable"


class ArchiveDamaged(QMTError):
    """The archive's manifest or one of its files cannot be read."""

    slug = "archive-damaged"


class BadFile(InvalidRequest):
    """A file to import is not what it should be; the message names row and column."""

    slug = "bad-file"


class CodecError(QMTError):
    """Bytes that are not what the schema says."""

    slug = "codec"
    http_status = 502


class EncodeError(QMTError):
    """A tick or bar that the schema cannot hold."""

    slug = "encode"
    http_status = 422


class AccessDenied(QMTError):
    """The key is missing, wrong, expired or revoked."""

    slug = "access-denied"
    http_status = 401


class ScopeMissing(AccessDenied):
    """The key is right, but lacks the scope for this."""

    slug = "scope-missing"
    http_status = 403
    scope: str


class HostRefused(AccessDenied):
    """The gateway was called by a name that is not its own."""

    slug = "host-refused"
    http_status = 421


class OriginRefused(AccessDenied):
    """A page of another site asked, without a key."""

    slug = "origin-refused"
    http_status = 403


class LimitExceeded(QMTError):
    """More than one caller may have, or faster.

    ``limit`` names it and ``allowed`` is its figure; ``retry_after_s`` is there where waiting
    helps.
    """

    slug = "limit-exceeded"
    http_status = 429
    limit: str
    allowed: float


class WrongProcess(QMTError):
    """A client that was made before a fork is used in the child.

    ``made_in`` is the id of the process that made it.
    """

    slug = "wrong-process"


class ConfigurationError(QMTError):
    """This process cannot start as it is configured."""

    slug = "configuration"


class WrongTimezone(ConfigurationError):
    """The process is not on China Standard Time, which xtquant silently needs."""

    slug = "wrong-timezone"
