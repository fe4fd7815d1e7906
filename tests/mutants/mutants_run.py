"""Breaks one line at a time of what decides over ticks, and sees whether a test notices.

A mutant that no test notices survives; its name is printed, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_JUDGE: Final = "producer/qmt_producer/sequencer.py"
_LUA: Final = "producer/qmt_producer/functions.lua"
_LINE: Final = "producer/qmt_producer/market_line.py"
_FEED: Final = "reading/qmt_reading/live/feed.py"
_CURSOR: Final = "protocol/qmt_protocol/cursor/cursor.py"
_POSITION: Final = "protocol/qmt_protocol/cursor/feed_offset.py"
_PROGRESS: Final = "protocol/qmt_protocol/cursor/progress.py"
_SCOPE: Final = "protocol/qmt_protocol/cursor/scope.py"
_OF_JUDGE: Final = ("tests/producer/test_sequencer.py",)
_OF_LOG: Final = ("tests/producer/test_filing.py", "tests/producer/test_publisher.py")
_OF_HOLDER: Final = (*_OF_LOG, "tests/producer/test_takeover.py")
_OF_CURSOR: Final = ("tests/protocol/test_cursor.py",)
_OF_READER: Final = ("tests/gateway/test_live_cut_off.py", "tests/gateway/test_gateway_hub.py")


@dataclass(frozen=True)
class Mutant:
    """One change, and the tests that should notice."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTANTS: Final = (
    Mutant(
        "a tick of the same ms is new",
        _JUDGE,
        "known.ms < at <= limit_ms",
        "known.ms <= at <= limit_ms",
        _OF_JUDGE,
    ),
    Mutant(
        "nothing is clamped", _JUDGE, "if ms > now_ms + self._future_ms:", "if False:", _OF_JUDGE
    ),
    Mutant(
        "only the same ms is compared", _JUDGE, "one[0] >= ms and", "one[0] == ms and", _OF_JUDGE
    ),
    Mutant(
        "nothing is a repeat", _JUDGE, "_content_of(one[2]) == content for", "False for", _OF_JUDGE
    ),
    Mutant(
        "volume is no content",
        _JUDGE,
        "return row[0], row[1], row[_VOLUME], *firsts",
        "return row[0], row[1], *firsts",
        _OF_JUDGE,
    ),
    Mutant(
        "volume may go back",
        _JUDGE,
        "behind = _went_back(row, known.newest)",
        "behind = False",
        _OF_JUDGE,
    ),
    Mutant(
        "a late tick is the newest",
        _JUDGE,
        "        if not behind:\n            known.newest = t1",
        "        known.newest = t1",
        _OF_JUDGE,
    ),
    Mutant(
        "a late tick has no flag", _JUDGE, "            flags |= TickFlag.LATE\n", "", _OF_JUDGE
    ),
    Mutant(
        "the number is not the next",
        _JUDGE,
        "number = known.number + 1\n        if not is_entry_id",
        "number = known.number\n        if not is_entry_id",
        _OF_JUDGE,
    ),
    Mutant(
        "what is forgotten is known",
        _JUDGE,
        "known.from_ms = max(known.from_ms, kept.popleft()[0] + 1)",
        "kept.popleft()",
        _OF_JUDGE,
    ),
    Mutant(
        "latest says all", _JUDGE, "known.from_ms = known.ms + 1", "known.from_ms = 0", _OF_JUDGE
    ),
    Mutant(
        "a stream's tail is not learnt",
        _JUDGE,
        "if tail > (known.ms, known.number):",
        "if False:",
        _OF_JUDGE,
    ),
    Mutant(
        "the window is cut within a batch",
        _JUDGE,
        "                outgrown.append(known)",
        "                _cut(known)",
        _OF_JUDGE,
    ),
    Mutant(
        "an unchanged piece is left out",
        _JUDGE,
        "pieces.append(body[batch.first : end])",
        "pieces.append(b'')",
        _OF_JUDGE,
    ),
    Mutant(
        "an older bar is news", _JUDGE, "return bool(last[_BAR_CLOSED]) or", "return", _OF_JUDGE
    ),
    Mutant(
        "a late bar is added",
        _JUDGE,
        "            elif ms < known.ms:\n",
        "            elif False:\n",
        _OF_JUDGE,
    ),
    Mutant(
        "any term may append",
        _LUA,
        "if not is_held(keys[1], args[1]) then return { 'fenced', 0, '' } end",
        "",
        _OF_LOG,
    ),
    Mutant(
        "the batch before is not looked at",
        _LUA,
        "~= tonumber(args[5]) then",
        "~= tonumber(args[5]) and false then",
        _OF_HOLDER,
    ),
    Mutant(
        "the future may be appended",
        _LUA,
        "if tonumber(args[8]) > now_ms + tonumber(args[9])",
        "if false and tonumber(args[8]) > now_ms",
        _OF_LOG,
    ),
    Mutant(
        "what is not filed is trimmed",
        _LUA,
        "if is_behind(oldest, args[7]) then oldest = args[7] end",
        "",
        _OF_LOG,
    ),
    Mutant(
        "latest goes back", _LUA, "and is_newest and is_forward(code, id)", "and is_newest", _OF_LOG
    ),
    Mutant(
        "a late tick is the latest",
        _LUA,
        "and byte(data, -1) % 2 ~= LATE",
        "",
        (*_OF_LOG, "tests/producer/test_filed_again.py"),
    ),
    Mutant("what is refused is not named", _LUA, "    refused = refused + 1\n", "", _OF_LOG),
    Mutant(
        "any bytes are there already", _LUA, "and stored[1][2][2] == data then", "then", _OF_LOG
    ),
    Mutant(
        "a damaged entry stops all",
        _LUA,
        "    redis.call('SET', keys[1], entry[1])\n    return { 'damaged'",
        "    return { 'damaged'",
        _OF_LOG,
    ),
    Mutant(
        "a taker does not file what is left",
        _LINE,
        "            if self._filing.look():  # at what was left to be filed\n"
        "                self.file()\n                return True\n",
        "",
        _OF_LOG,
    ),
    Mutant(
        "memory outlives the term",
        _LINE,
        "self._term, self._recalled = term.decode(), False",
        "self._term = term.decode()",
        _OF_HOLDER,
    ),
    Mutant(
        "streams are read before all is filed",
        _LINE,
        "            while self._filing:\n                if not self.file():\n"
        "                    return None\n",
        "",
        _OF_HOLDER,
    ),
    Mutant(
        "a feed that is gone is no news",
        _LINE,
        "broken = self._filing.broken or id_key(filed) > id_key(tail.decode())",
        "broken = self._filing.broken",
        _OF_LOG,
    ),
    Mutant(
        "a refused code is not forgotten",
        _LINE,
        "                self._memory(done.kind).forget(one)",
        "                pass",
        _OF_LOG,
    ),
    Mutant(
        "a snapshot goes on from the feed's end",
        _FEED,
        "found.offsets[market] = self._epoch(market, epoch), self._filed(market, filed)",
        "found.offsets[market] = self._epoch(market, epoch), await self._end_of("
        'FeedOffset(market, ("", "")))',
        _OF_READER,
    ),
    Mutant(
        "the cursor does not notice another epoch",
        _POSITION,
        "return bool(self.epoch) and epoch != self.epoch",
        "return False",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor takes an entry of another epoch for its own",
        _POSITION,
        "is_there = not is_other and bool(entries)",
        "is_there = bool(entries)",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not notice that it was trimmed",
        _POSITION,
        "follows = is_there or is_whole or not self.has_entry",
        "follows = True",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor trusts a position without an entry for ever",
        _POSITION,
        "self.at, self.has_entry = entries[-1].id, True",
        "self.at = entries[-1].id",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not move to a feed's end",
        _POSITION,
        "            self.at = max(self.at, end, key=id_key)\n",
        "",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor gives again",
        _CURSOR,
        "if last is None or is_behind(entry_id, last):",
        "if True:",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not note what it gives",
        _CURSOR,
        "                last_ids[code] = entry_id\n                news.append(row)",
        "                news.append(row)",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor gives bars again",
        _CURSOR,
        'takes(row[0], row[1]) and is_behind(row[2], self.last_ids.get(key, ""))',
        "takes(row[0], row[1])",
        ("tests/client/test_client_ticks.py", "tests/gateway/test_live_cut_off.py"),
    ),
    Mutant(
        "the cursor forgets what was seen",
        _CURSOR,
        "(position.codes or {}) | position.seen",
        "dict(position.codes or {})",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor believes that a short position knows all",
        _CURSOR,
        "() if position.codes is not None else position.offsets",
        "()",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not heal",
        _CURSOR,
        "        if recovers:\n",
        "        if False:\n",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor passes over a code that is new",
        _CURSOR,
        'codes = sorted(code for code in self._newest if code.endswith(f".{market}"))',
        "codes = sorted(code for code in self._newest if code in self.last_ids)",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not name a code that it does not know",
        _CURSOR,
        "                self._name_unknown(market, codes)\n",
        "",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor reads a feed from the beginning behind what streams gave",
        _CURSOR,
        "self.recovering |= {m: at for m, at in offsets.items() if at[1] == BEGINNING}",
        "pass",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not tell what was trimmed",
        _CURSOR,
        'if one.reason == "epoch" or not recovers:',
        'if one.reason == "epoch":',
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not tell another history",
        _CURSOR,
        'if one.reason == "epoch" or not recovers:',
        "if not heals:",
        _OF_READER,
    ),
    Mutant(
        "the cursor heals from before its position",
        _CURSOR,
        "code: self.last_ids.get(code, begin) for code in codes",
        "code: begin for code in codes",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor does not note what streams gave",
        _CURSOR,
        '        """Take what streams held behind the ids of `recover`."""\n'
        "        self.last_ids.update((code, entry_id) for code, entry_id, _ in rows)\n",
        "",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor misses a stream that is gone",
        _CURSOR,
        "        if absent:\n",
        "        if False:\n",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor names a stream that is whole",
        _CURSOR,
        "if id_key(self._newest[code]) > id_key(last :=",
        "if id_key(self._newest[code]) >= id_key(last :=",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor moves before the feed is settled",
        _CURSOR,
        "            if is_behind(end, self._feed_from[market][1]):",
        "            if False:",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor settles at the first entry",
        _CURSOR,
        "if is_behind(self.settling.get(market, BEGINNING), entry.id):",
        "if False:",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor never settles",
        _CURSOR,
        "        self.settling.pop(market, None)\n        self.offsets[market] = offset",
        "        self.offsets[market] = offset",
        _OF_CURSOR,
    ),
    Mutant(
        "the cursor gives what was asked by nobody",
        _SCOPE,
        "return [row for row in rows if row[0] in codes]",
        "return list(rows)",
        _OF_CURSOR,
    ),
    Mutant(
        "a saved position forgets what was taken of a batch",
        _PROGRESS,
        "            self._taken[key] = row[-2]\n",
        "            pass\n",
        _OF_CURSOR,
    ),
    Mutant(
        "a saved position forgets that it is ahead of its mark",
        _PROGRESS,
        "if with_codes or self._in_stored or begins else None",
        "if with_codes or self._in_stored else None",
        _OF_CURSOR,
    ),
    Mutant(
        "a saved position forgets what was taken of a part",
        _PROGRESS,
        "position.seen |= self._taken",
        "pass",
        _OF_CURSOR,
    ),
    Mutant(
        "the hub's memory leads over a healing",
        "gateway/qmt_gateway/hub.py",
        "if market.broken or market.is_recovering or was_recovering:",
        "if market.broken or market.is_recovering:",
        _OF_READER,
    ),
    Mutant(
        "a stream that is shorter than its reader's position lost something",
        "reading/qmt_reading/stored/streams.py",
        'id_key(info["last-generated-id"].decode()) <= id_key(after)',
        'info["last-generated-id"].decode() == after',
        ("tests/client/test_client_trimmed.py",),
    ),
)
"""Lines that decide, each broken."""


def notices(mutant: Mutant, folder: Path) -> str:
    """Return the first test that notices a mutant; empty: it survives."""
    top = mutant.path.partition("/")[0]
    copy = folder / mutant.name.replace(" ", "-") / top
    shutil.copytree(ROOT / top, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy.parent / mutant.path
    text = file.read_text("utf-8")
    before = mutant.before
    if text.count(before) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.path} has {text.count(before)} times {before!r}")
    file.write_text(text.replace(before, mutant.after), "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--timeout=100",
            "-p",
            "no:cacheprovider",
            *mutant.tests,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(copy.parent)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout}")
    named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return named[0].split(" ")[1] if done.returncode else ""


def main() -> int:
    """Try the mutants whose names have a word, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.word in mutant.name]
    with (
        tempfile.TemporaryDirectory(prefix="qmt-mutants-") as folder,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        found = list(pool.map(lambda mutant: notices(mutant, Path(folder)), chosen))
    for mutant, test in zip(chosen, found, strict=True):
        print(f"{mutant.name}: {test or 'SURVIVES'}")
    survivors = [mutant.name for mutant, test in zip(chosen, found, strict=True) if not test]
    print(json.dumps({"mutants": len(chosen), "survivors": survivors}))
    return bool(survivors)


if __name__ == "__main__":
    raise SystemExit(main())
