"""Each rule that scripts/mutants breaks stands in one place, as it is written there."""

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_the_line_that_a_mutant_changes_is_there_once(mutant: Mutant) -> None:
    assert (ROOT / "attachfs" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert (ROOT / "tests" / mutant.test).exists()
