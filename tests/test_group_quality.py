"""How good the solvers of set functions are, on the benchmark's own instances."""

import numpy as np

from benchmarks.group_quality import measure, table


def test_local_search_comes_within_a_thousandth_of_what_dynamic_programming_proves():
    records = measure(18, 10, ("local_search", "runs"))
    excess = {name: [r["excess"] for r in records if r["solver"] == name] for name in ("local_search", "runs")}
    assert min(map(min, excess.values())) > -1e-9
    assert np.mean(excess["local_search"]) < 1e-3
    assert max(excess["local_search"]) < 1e-2
    assert np.mean(excess["runs"]) > 0.01
    assert "| local_search | 0 |" in table(records)
