"""Partition items into classes at the least cost: medoids, pair weights, or any set function.

One entry point, ``solve(problem, solver) -> Solution``; three kinds of problem; a solver is a frozen dataclass of
settings. Each solution carries a lower bound and is priced by the problem itself, never by the solver that found it.

>>> import solvers
>>> problem = solvers.MedoidProblem([[0, 4, 9], [3, 0, 8], [9, 7, 0]], K=2)
>>> solution = solvers.solve(problem, "exhaustive")
>>> solution.coloring, solution.cost, solution.representatives, solution.status
(Coloring([0, 0, 1]), 3.0, (0, 2), 'optimal')

To add a solver, derive from ``Solver``, pass it to ``solve``, and test it with ``solvers.testing.check_solver``. A
package that announces one by an entry point of the group ``geocolor.solvers`` gives it a name: ``solvers.plugins``.
"""

from solvers.auto import Auto
from solvers.benders import Benders
from solvers.bounds import Bound, lagrangian_bound, quick_bound, strong_bound
from solvers.branch_and_cut import BranchAndCut
from solvers.branch_and_price import BranchAndPrice
from solvers.certificates import (
    Certificate,
    ClassPrices,
    Clique,
    DualPrices,
    Inequalities,
    Inequality,
    ItemShares,
    ItemWeights,
    Multipliers,
)
from solvers.certify import Verdict, certify
from solvers.chromatic import Chromatic
from solvers.coloring import Coloring
from solvers.column_generation import ColumnGeneration
from solvers.cp_sat import CpSat
from solvers.dsatur_search import DsaturSearch
from solvers.exhaustive import Exhaustive
from solvers.greedy import Greedy
from solvers.group import GroupProblem
from solvers.habits import Adjacent, OneColor, Private, Random
from solvers.lagrangian import Lagrangian
from solvers.local_search import LocalSearch
from solvers.medoid import MedoidProblem
from solvers.merging import MergeTwins, merge_twins
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.registry import SOLVERS, find_solver, solver_names
from solvers.runs import Runs
from solvers.search import Search
from solvers.solution import OPTIMALITY_GAP, Solution, relative_gap
from solvers.solve import solve
from solvers.solver import Solver
from solvers.sparse_medoid import SparseMedoidProblem
from solvers.spectral import Spectral
from solvers.subset_dp import SubsetDP
from solvers.symmetric_cp_sat import SymmetricCpSat
from solvers.symmetry import Automorphisms, automorphisms
from solvers.tabu import Tabu
from solvers.tabucol import TabuCol

__all__ = [
    "OPTIMALITY_GAP",
    "SOLVERS",
    "Adjacent",
    "Auto",
    "Automorphisms",
    "Benders",
    "Bound",
    "BranchAndCut",
    "BranchAndPrice",
    "Certificate",
    "Chromatic",
    "ClassPrices",
    "Clique",
    "Coloring",
    "ColumnGeneration",
    "CpSat",
    "DsaturSearch",
    "DualPrices",
    "Exhaustive",
    "Greedy",
    "GroupProblem",
    "Inequalities",
    "Inequality",
    "ItemShares",
    "ItemWeights",
    "Lagrangian",
    "LocalSearch",
    "MedoidProblem",
    "MergeTwins",
    "Multipliers",
    "OneColor",
    "PairwiseProblem",
    "Private",
    "Problem",
    "Random",
    "Runs",
    "Search",
    "Solution",
    "Solver",
    "SparseMedoidProblem",
    "Spectral",
    "SubsetDP",
    "SymmetricCpSat",
    "Tabu",
    "TabuCol",
    "Verdict",
    "automorphisms",
    "certify",
    "find_solver",
    "lagrangian_bound",
    "merge_twins",
    "quick_bound",
    "relative_gap",
    "solve",
    "solver_names",
    "strong_bound",
]
