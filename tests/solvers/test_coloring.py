import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers import Coloring
from solvers.testing import colorings
from tests.solvers.brute_force import partitions

names = st.lists(st.integers(-3, 3), max_size=8)


@given(names, st.permutations(range(-3, 4)))
def test_names_of_colors_do_not_matter(colors, renaming):
    renamed = Coloring([renaming[color + 3] for color in colors])
    assert renamed == Coloring(colors)
    assert hash(renamed) == hash(Coloring(colors))


@given(names)
def test_colors_are_numbered_by_first_use(colors):
    canonical = Coloring(colors).colors
    assert all(color <= max(canonical[:at], default=-1) + 1 for at, color in enumerate(canonical))


@given(colorings())
def test_classes_give_the_coloring_back(coloring):
    assert Coloring.from_classes(coloring.classes(), len(coloring)) == coloring
    assert len(coloring.classes()) == coloring.number_of_colors


def test_items_in_no_class_are_alone():
    assert Coloring.from_classes([(3, 1)], 4) == Coloring([0, 1, 2, 1])


@given(colorings(size=6), st.permutations(range(6)), st.permutations(range(6)))
def test_permuting_moves_items_and_composes(coloring, first, second):
    moved = coloring.permute(first)
    assert all(moved[first[i]] == moved[first[j]] for i in range(6) for j in range(6) if coloring[i] == coloring[j])
    assert moved.number_of_colors == coloring.number_of_colors
    assert moved.permute(second) == coloring.permute([second[i] for i in first])


def test_refinement_orders_colorings():
    fine, coarse, other = Coloring([0, 1, 2, 2]), Coloring([0, 0, 1, 1]), Coloring([0, 1, 0, 1])
    assert fine.refines(coarse)
    assert fine.refines(fine)
    assert not coarse.refines(fine)
    assert not coarse.refines(other)
    assert not other.refines(coarse)


def test_symmetry_order_is_an_exact_integer():
    assert Coloring([0] * 30).symmetry_order() == math.factorial(30)
    assert Coloring([0, 0, 0, 1, 1, 2]).symmetry_order() == 12
    assert Coloring([]).symmetry_order() == 1


def test_symmetry_order_counts_the_permutations_that_keep_every_class():
    from itertools import permutations

    coloring = Coloring([0, 1, 0, 1, 0])
    kept = [s for s in permutations(range(5)) if all(coloring[s[i]] == coloring[i] for i in range(5))]
    assert len(kept) == coloring.symmetry_order()


def test_a_coloring_is_an_immutable_value():
    coloring = Coloring(np.array([2, 2, 0]))
    assert list(coloring) == [0, 0, 1]
    assert coloring[2] == 1
    assert len(coloring) == 3
    assert eval(repr(coloring)) == coloring
    assert pickle.loads(pickle.dumps(coloring)) == coloring
    with pytest.raises(AttributeError):
        coloring.colors = (0,)


def test_there_are_as_many_colorings_as_bell_numbers():
    assert [len(set(partitions(n))) for n in range(7)] == [1, 1, 2, 5, 15, 52, 203]


def test_mistakes_are_named():
    with pytest.raises(TypeError):
        Coloring([0.5])
    with pytest.raises(ValueError, match="item 1 is in class 0 and again in class 1"):
        Coloring.from_classes([(0, 1), (1, 2)], 3)
    with pytest.raises(ValueError, match="holds item 7, but the items are 0 to 2"):
        Coloring.from_classes([(0, 7)], 3)
    with pytest.raises(ValueError, match="permutation of the items 0 to 1"):
        Coloring([0, 1]).permute([0, 0])
    with pytest.raises(ValueError, match="2 and 3 items"):
        Coloring([0, 1]).refines(Coloring([0, 1, 2]))
