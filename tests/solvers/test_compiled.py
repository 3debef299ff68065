"""Kernels compiled in the background: the same numbers as the plain function, and no time limit exceeded for them."""

import threading

import numba
import numpy as np
import pytest

from solvers import PairwiseProblem
from solvers.compiled import Compilation
from solvers.search import Search
from solvers.tabucol import Neighbours
from solvers.tabucol_kernel import FEWEST, SIGNATURE, STEP, TOTAL, move_items


def search(**settings):
    return Search(PairwiseProblem(np.zeros((2, 2))), **settings)


def double(number):
    return 2 * number


def test_a_function_is_compiled_and_kept():
    compilation = Compilation(double, "int64(int64)")
    kernel = compilation.wait(search())
    assert kernel(21) == 42
    assert kernel.signatures
    assert compilation.wait(search(time_limit=0)) is kernel


def test_without_a_folder_for_the_cache_it_is_compiled_all_the_same(monkeypatch):
    njit = numba.njit

    def uncached(signature, cache=False):
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return njit(signature)

    monkeypatch.setattr(numba, "njit", uncached)
    assert Compilation(double, "int64(int64)").wait(search())(4) == 8


def test_who_waits_goes_on_when_the_time_is_up(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(Compilation, "_compile", lambda self: done.wait(60))
    clock = search(time_limit=0.05)
    assert Compilation(double, "int64(int64)").wait(clock) is None
    assert clock.cut_short
    done.set()


def test_what_goes_wrong_is_raised_where_the_kernel_is_asked_for():
    with pytest.raises(NameError, match="no_such_type"):
        Compilation(double, "int64(no_such_type)").wait(search())


@pytest.mark.parametrize("seed", range(4))
def test_compiled_moves_are_those_of_the_plain_function(seed):
    rng = np.random.default_rng(seed)
    conflict = np.triu(rng.random((30, 30)) < 0.5, 1)
    graph = Neighbours.of(conflict | conflict.T)
    ends = []
    for function in (move_items, Compilation(move_items, SIGNATURE).wait(search())):
        colors = np.random.default_rng(seed).integers(0, 5, 30).astype(np.int32)
        clashes = graph.clashes(colors, 5)
        total = int(clashes[np.arange(30), colors].sum()) // 2
        state = np.array([total, total, 0, 12345], dtype=np.int64)
        best, barred, active = colors.copy(), np.zeros((30, 5), dtype=np.int64), np.zeros((2, 30), dtype=np.int32)
        with np.errstate(over="ignore"):
            function(graph.starts, graph.others, colors, clashes, barred, best, active, state, 300, 10**9)
        assert (clashes == graph.clashes(colors, 5)).all()
        assert state[TOTAL] == clashes[np.arange(30), colors].sum() // 2
        assert state[FEWEST] == graph.clashes(best, 5)[np.arange(30), best].sum() // 2
        assert state[STEP] == 300 or state[TOTAL] == 0
        ends.append((colors.tolist(), best.tolist(), state.tolist()))
    assert ends[0] == ends[1]
