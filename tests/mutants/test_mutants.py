"""Each mutant still has a line to break."""

from __future__ import annotations

import pytest
from mutants_run import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_breaks_one_line(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text("utf-8")
    assert text.count(mutant.before) == 1
    assert mutant.after != mutant.before
    assert all((ROOT / test).exists() for test in mutant.tests)
