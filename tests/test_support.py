"""Every architecture goes through plan, apply, save, load, forward and backward, and README says what was in scope."""

import pytest

from tests.architectures import CASES, Case
from tests.support import examine, in_readme, table


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_readme_says_what_the_architecture_supports(case: Case) -> None:
    assert examine(case).row() in in_readme(), "run python -m tests.support"


def test_readmes_table_has_these_rows_and_no_others() -> None:
    rows = in_readme().removeprefix(table([]).split("<!-- /")[0]).removesuffix("<!-- /support -->\n").splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [case.name for case in CASES]
