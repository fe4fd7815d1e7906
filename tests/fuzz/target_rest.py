"""Requests that schemathesis makes of the gateway's own description, right ones and wrong ones.

A finding is an answer of 500 and above though nothing is away, one of 400 and above that is no
problem document or does not name the field, an error that nobody caught, or the process gone.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import requests
import schemathesis
from fuzz_children import Failure, Report
from fuzz_gateway import GatewayRig, Misbehaved
from fuzz_run import Target
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import errors as hypothesis_errors
from schemathesis.generation import GenerationMode

__all__ = ["TARGET", "run"]

_BLOCK: Final = 100
"""Requests that one seed of hypothesis gives: of one operation, right or wrong."""
_WITHIN_S: Final = 90.0
_STRANGE: Final = (
    *("", "\0", "１２", "٣", "NaN", "inf", "-1", "0001-01-01", "9999-12-31", "9" * 400),
    *("600519.SH," * 50, "６００５１９.SH", "1m|600519.SH", "*", "SH", "x" * 5_000, "\ud7ff", "%"),
    *("2026-01-05", "20260105", "2026-01-05T09:30:00+23:59", str(2**62 + 1), "1e400", "tick"),
)
Prepared = requests.PreparedRequest


def run(number: int, count: int, keep: Path | None = None) -> Report:
    """Run the target: ``number`` is the seed."""
    report = Report()
    rig = GatewayRig()
    try:
        with requests.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session.trust_env = False
            for request in _requests(rig.url, session, number, count):
                _one(rig, session, request, report, keep)
                if rig.process.process.poll() is not None:
                    rig.close()
                    rig = GatewayRig()
    finally:
        rig.close()
    return report


def _requests(url: str, session: requests.Session, number: int, count: int) -> Iterator[Prepared]:
    schema = schemathesis.openapi.from_dict(session.get(f"{url}/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    made = block = 0
    while made < count:
        chance = random.Random(f"{number}:{block}")
        block += 1
        operation = chance.choice(operations)
        mode = chance.choice(list(GenerationMode))
        for request in _block(url, operation, mode, chance):
            yield _stranger(request, chance) if chance.random() < 0.4 else request
            made += 1
            if made == count:
                return


def _block(url: str, operation: Any, mode: GenerationMode, chance: random.Random) -> list[Prepared]:
    found: list[Prepared] = []

    @seed(chance.getrandbits(64))
    @settings(
        max_examples=_BLOCK,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(operation.as_strategy(mode))
    def note(case: Any) -> None:
        told = case.as_transport_kwargs(base_url=url)
        try:
            found.append(requests.Request(**told).prepare())
        except (ValueError, requests.RequestException):
            pass  # nothing that could be sent

    try:
        note()
    except (hypothesis_errors.Unsatisfiable, hypothesis_errors.FlakyStrategyDefinition):
        pass  # of an operation without parameters nothing is wrong
    return found


def _stranger(request: Prepared, chance: random.Random) -> Prepared:
    """Put something strange into a query or a body."""
    act = chance.randrange(5)
    strange = chance.choice(_STRANGE)
    if act < 3 and request.method != "POST":
        base, _, query = str(request.url).partition("?")
        names = [part.partition("=")[0] for part in query.split("&") if part] or ["codes"]
        more = [(name, strange) for name in chance.sample(names, 1)]
        kept = [part for part in query.split("&") if part]
        if act and kept:
            kept.pop(chance.randrange(len(kept)))
        changed = requests.models.PreparedRequest()
        changed.prepare_url(base, more)
        request.url = str(changed.url) + ("&" + "&".join(kept) if kept else "")
    elif isinstance(request.body, bytes) and request.body:
        at = chance.randrange(len(request.body))
        new = json.dumps(strange).encode()
        request.body = request.body[:at] + new + request.body[at + chance.randrange(4) :]
        request.headers["Content-Length"] = str(len(request.body))
    return request


def _one(
    rig: GatewayRig,
    session: requests.Session,
    request: Prepared,
    report: Report,
    keep: Path | None,
) -> None:
    report.tried += 1
    try:
        response = session.send(request, timeout=_WITHIN_S, allow_redirects=False)
        kind = _judge(response)
        rig.check()
    except (Misbehaved, requests.RequestException) as error:
        what = f"{type(error).__name__}: {error}"
        body = request.body if isinstance(request.body, bytes) else str(request.body).encode()
        again = f"curl -X {request.method} '{request.url}' # {dict(request.headers)} {body[:500]!r}"
        report.failures.append(Failure(report.tried - 1, what, again))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            name = keep / f"rest-{report.tried - 1}"
            name.with_suffix(".txt").write_text(f"{again}\n\n{what}\n", "utf-8")
            name.with_suffix(".bin").write_bytes(body)
        return
    if kind:
        report.refused += 1
        report.by_error[kind] += 1
    else:
        report.held += 1


def _judge(response: requests.Response) -> str:
    """Return the kind of an error answer, ``""`` of another one."""
    if response.status_code < 400:
        return ""
    told = _problem(response)
    if response.status_code >= 500:
        raise Misbehaved(f"{response.status_code} {told}")
    field = told["data"].get("field")  # "": a parameter without a name
    if response.status_code in (415, 422) and field is None:
        raise Misbehaved(f"no field is named: {told}")
    if len(response.content) > 10_000:
        raise Misbehaved(f"{len(response.content)} bytes of an error")
    return str(told["error"])


def _problem(response: requests.Response) -> dict[str, Any]:
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict) or not {"status", "error", "message", "data"} <= told.keys():
        raise Misbehaved(f"{response.status_code} without a problem document")
    return told


TARGET: Final = Target(
    "rest",
    "requests that schemathesis makes of the gateway's description, right and wrong, and stranger "
    "ones made of them, to a gateway with Redis, a worker and a producer",
    20_000,
    300,
    run,
)
