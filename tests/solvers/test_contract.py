"""Every solver of ours under the same contract that users are given for theirs, and the contract itself under test."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from solvers import (
    Adjacent,
    Coloring,
    CpSat,
    GroupProblem,
    LocalSearch,
    MedoidProblem,
    PairwiseProblem,
    Random,
    Solver,
    SparseMedoidProblem,
    Spectral,
    solver_names,
)
from solvers.testing import check_solver


@pytest.mark.parametrize("name", solver_names())
def test_the_solver_keeps_the_contract(name):
    check_solver(name, max_examples=15, max_size=5)


@pytest.mark.parametrize(
    "solver",
    [
        Adjacent(run_length=3),
        LocalSearch(rounds=0, neighbours=1, max_oracle_calls=5),
        Random(draws=3),
        Spectral(numbers=(2,), starts=1),
        CpSat(warm_start=False, all_groups=5),
    ],
    ids=repr,
)
def test_the_contract_holds_for_other_settings(solver):
    check_solver(solver, max_examples=6, max_size=4)


class Broken(Solver):
    name: ClassVar[str] = "broken"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)


@dataclass(frozen=True)
class Boaster(Broken):
    """Calls itself exact and stops at the first coloring."""

    exact: ClassVar[bool] = True

    def run(self, problem, search):
        search.offer(Coloring(range(problem.size)))
        search.prove(search.cost)


@dataclass(frozen=True)
class SparseBoaster(Boaster):
    problems: ClassVar[tuple[type, ...]] = (SparseMedoidProblem,)


@dataclass(frozen=True)
class Dreamer(Broken):
    """Claims a bound above its own coloring."""

    def run(self, problem, search):
        cost = search.offer(Coloring([0] * problem.size))
        if math.isfinite(cost):
            search.prove(cost + 1 + problem.scale)


@dataclass(frozen=True)
class Whimsical(Broken):
    """Takes its randomness from elsewhere than the seed."""

    rng: ClassVar[np.random.Generator] = np.random.default_rng(0)

    def run(self, problem, search):
        search.offer(Coloring(self.rng.integers(0, 3, problem.size).tolist()))


@dataclass(frozen=True)
class Pessimist(Broken):
    """Finds nothing and calls that a proof."""

    def run(self, problem, search):
        search.prove(math.inf)


@pytest.mark.parametrize(
    ("solver", "error", "sentence"),
    [
        (Boaster(), AssertionError, "an exact solver found|the bound .* is above"),
        (SparseBoaster(), AssertionError, "an exact solver found|the bound .* is above"),
        (Dreamer(), RuntimeError, "claims that no coloring costs less"),
        (Whimsical(), AssertionError, "one seed gave two answers"),
        (Pessimist(), AssertionError, "the bound inf is above"),
    ],
    ids=lambda value: getattr(value, "name", None) and type(value).__name__,
)
def test_the_contract_catches_broken_solvers(solver, error, sentence):
    with pytest.raises((error, ExceptionGroup)) as caught:
        check_solver(solver, max_examples=25, max_size=3)
    import re

    errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert any(isinstance(e, error) and re.search(sentence, str(e)) for e in errors)


def test_a_solver_that_takes_nothing_cannot_be_checked():
    class Idle(Broken):
        problems: ClassVar[tuple[type, ...]] = ()

        def run(self, problem, search):
            raise NotImplementedError

    with pytest.raises(
        ValueError, match="takes none of MedoidProblem, SparseMedoidProblem, PairwiseProblem, GroupProblem"
    ):
        check_solver(Idle())
