"""docs/tables.md says what the tables are; the examples of docs/client.md run."""

from __future__ import annotations

import re
from pathlib import Path

from qmt_protocol.codes import asset_class, lot_size
from qmt_protocol.periods import PERIODS
from qmt_protocol.tables import BAR_TABLE, TICK_TABLE

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows_of(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_of_tables_is_the_tables() -> None:
    page = (DOCS / "tables.md").read_text("utf-8")
    for heading, table in (("Bars", BAR_TABLE), ("Ticks", TICK_TABLE)):
        assert rows_of(page, heading) == [
            [f"`{column.name}`", f"`{column.dtype}`", column.unit, column.null] for column in table
        ]
    named = " ".join(row[0] for row in rows_of(page, "Index"))
    assert re.findall(r"`(\w+)`", named) == list(PERIODS)
    for kind, examples, lot, *_ in rows_of(page, "By asset class"):
        for code in examples.split():
            assert asset_class(code) == kind.strip("`"), code
            assert lot_size(code) == int(lot.split()[0]), code
