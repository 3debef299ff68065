"""A coloring: which items share a class, with the names of the classes forgotten."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, init=False, slots=True, repr=False)
class Coloring:
    """A partition of the items ``0 … L − 1``, kept as the canonical sequence of their colors.

    Colors are renamed by first use, so that two sequences which differ only by the names of the colors are one value:
    equal, with one hash. This is the restricted growth string of the partition.

    >>> Coloring([7, 7, 3, 7]) == Coloring([0, 0, 1, 0])
    True
    >>> Coloring([7, 7, 3, 7]).classes()
    ((0, 1, 3), (2,))

    Raises:
        TypeError: when a color is not an integer.
    """

    colors: tuple[int, ...]

    def __init__(self, colors: Iterable[int]) -> None:
        names: dict[int, int] = {}
        canonical = tuple(names.setdefault(operator.index(color), len(names)) for color in colors)
        object.__setattr__(self, "colors", canonical)

    @classmethod
    def from_classes(cls, classes: Iterable[Iterable[int]], size: int) -> Coloring:
        """The coloring of ``size`` items whose classes are given; items in none of them are classes of their own.

        Raises:
            ValueError: when an item is out of range or in two classes; the sentence names the item.
        """
        colors = [-1 - item for item in range(size)]
        for color, members in enumerate(classes):
            for item in members:
                if not 0 <= item < size:
                    raise ValueError(f"class {color} holds item {item}, but the items are 0 to {size - 1}")
                if colors[item] >= 0:
                    raise ValueError(f"item {item} is in class {colors[item]} and again in class {color}")
                colors[item] = color
        return cls(colors)

    @property
    def number_of_colors(self) -> int:
        return max(self.colors, default=-1) + 1

    def classes(self) -> tuple[tuple[int, ...], ...]:
        """The classes in the order of their colors, each an ascending tuple of items."""
        members: list[list[int]] = [[] for _ in range(self.number_of_colors)]
        for item, color in enumerate(self.colors):
            members[color].append(item)
        return tuple(map(tuple, members))

    def permute(self, sigma: Sequence[int]) -> Coloring:
        """The same partition after item ``i`` is renamed ``sigma[i]``.

        Raises:
            ValueError: when ``sigma`` is not a permutation of the items.
        """
        if sorted(sigma) != list(range(len(self))):
            raise ValueError(f"sigma must be a permutation of the items 0 to {len(self) - 1}, got {list(sigma)}")
        colors = [0] * len(self)
        for item, target in enumerate(sigma):
            colors[target] = self.colors[item]
        return Coloring(colors)

    def refines(self, other: Coloring) -> bool:
        """Whether each class of this coloring lies within a class of the other."""
        if len(self) != len(other):
            raise ValueError(f"colorings of {len(self)} and {len(other)} items cannot be compared")
        return len(set(zip(self.colors, other.colors, strict=True))) == self.number_of_colors

    def symmetry_order(self) -> int:
        """``∏ |class|!``: how many permutations of the items map each class to itself. An exact integer."""
        return math.prod(math.factorial(len(members)) for members in self.classes())

    def __len__(self) -> int:
        return len(self.colors)

    def __iter__(self) -> Iterator[int]:
        return iter(self.colors)

    def __getitem__(self, item: int) -> int:
        return self.colors[item]

    def __repr__(self) -> str:
        return f"Coloring({list(self.colors)})"
