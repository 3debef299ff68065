"""TabuCol's moves as one loop over numbers and arrays, which numba compiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = (
    "int64(int64[::1], int32[::1], int32[::1], int32[:, ::1], int64[:, ::1], int32[::1], int32[:, ::1], int64[::1],"
    "int64, int64)"
)
TOTAL, FEWEST, STEP, DRAWN = range(4)
"""What ``state`` holds: conflicts now, the fewest met, moves made, the state of the random numbers."""


def move_items(
    starts: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    colors: NDArray[np.int32],
    clashes: NDArray[np.int32],
    barred: NDArray[np.int64],
    best: NDArray[np.int32],
    active: NDArray[np.int32],
    state: NDArray[np.int64],
    last: int,
    effort: int,
) -> Any:
    """Make moves until no conflict is left, ``last`` moves are made or the effort is spent; return the effort spent.

    Args:
        starts, neighbours: ``[L + 1]`` where each item's neighbours begin, and all of them.
        colors: ``[L]``, changed in place.
        clashes: ``[L, C]`` how many neighbours of an item have a color.
        barred: ``[L, C]`` up to which move an item may not take a color.
        best: ``[L]`` the colors with the fewest conflicts.
        active: ``[2, L]`` room for the items in conflict, and for the place of each among them.
        state: ``[4]``, see ``TOTAL`` to ``DRAWN``.
        last, effort: limits; a unit of effort is about an entry looked at.
    """
    size, number = clashes.shape
    items, place = active[0], active[1]
    total, fewest, step, drawn = state[TOTAL], state[FEWEST], state[STEP], state[DRAWN]
    count = 0
    for item in range(size):
        place[item] = -1
        if clashes[item, colors[item]] > 0:
            place[item] = count
            items[count] = item
            count += 1
    spent = size
    while total > 0 and step < last and spent < effort:
        step += 1
        least, ties, chosen, taken = size, 0, -1, -1
        for at in range(count):
            item = items[at]
            old = colors[item]
            own = clashes[item, old]
            for color in range(number):
                change = clashes[item, color] - own
                if change > least or color == old or (barred[item, color] > step and total + change >= fewest):
                    continue
                if change < least:
                    least, ties, chosen, taken = change, 1, item, color
                    continue
                ties += 1
                drawn = (drawn * 25214903917 + 11) & 281474976710655
                if (drawn >> 17) % ties == 0:
                    chosen, taken = item, color
        spent += 10 + count * number
        if chosen < 0:
            continue
        drawn = (drawn * 25214903917 + 11) & 281474976710655
        old = colors[chosen]
        barred[chosen, old] = step + (6 * (total + least)) // 10 + (drawn >> 17) % 10 + 1
        colors[chosen] = taken
        total += least
        for at in range(starts[chosen], starts[chosen + 1]):
            item = neighbours[at]
            clashes[item, old] -= 1
            clashes[item, taken] += 1
            if colors[item] == taken and place[item] < 0:
                place[item] = count
                items[count] = item
                count += 1
            elif colors[item] == old and clashes[item, old] == 0:
                count -= 1
                items[place[item]] = items[count]
                place[items[count]] = place[item]
                place[item] = -1
        spent += starts[chosen + 1] - starts[chosen]
        if clashes[chosen, taken] == 0:
            count -= 1
            items[place[chosen]] = items[count]
            place[items[count]] = place[chosen]
            place[chosen] = -1
        if total < fewest:
            fewest = total
            best[:] = colors
    state[TOTAL], state[FEWEST], state[STEP], state[DRAWN] = total, fewest, step, drawn
    return spent
