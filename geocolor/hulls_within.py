"""Hulls of priced classes within a bound of memory: those asked for last are kept, the others lie in a file."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping

import numpy as np

from geocolor.hull_files import KINDS, Hulls
from geocolor.mapped import telling_of_space
from geocolor.rate_distortion import Options

Group = tuple[int, ...]

#: A point of a hull in the file.
POINT = np.dtype(
    {
        "names": ["parameters", "damage", "operations", "rank", "right_rank", "kind"],
        "formats": ["<i8", "<f8", "<f8", "<i4", "<i4", "i1"],
    }
)

#: What is held of a hull beside its points, and of a point beside its columns: its size.
HULL, SIZE = 1500, 8

NAMES = np.array(KINDS, dtype="U5")


class HullsWithin(MutableMapping[Group, Hulls]):
    """Hulls by class, at most `memory` bytes of them at a time, but always those of one class.

    The file is a temporary one without a name, gone with the process. A class that is set again takes up space anew.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._kept: OrderedDict[Group, Hulls] = OrderedDict()
        self._held = 0
        self._places: dict[Group, tuple[int, tuple[tuple[tuple[float, float], int], ...]] | None] = {}
        self._file = tempfile.TemporaryFile(prefix="geocolor.")  # noqa: SIM115 - closed when nobody holds it

    def __getitem__(self, group: Group) -> Hulls:
        if group not in self._kept:
            self._keep(group, self._read(group))
        self._kept.move_to_end(group)
        return self._kept[group]

    def __setitem__(self, group: Group, hulls: Hulls) -> None:
        self._forget(group)
        self._places[group] = None
        self._keep(group, hulls)

    def __delitem__(self, group: Group) -> None:
        del self._places[group]
        self._forget(group)

    def __contains__(self, group: object) -> bool:
        return group in self._places

    def __iter__(self) -> Iterator[Group]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def set_aside(self) -> None:
        """Write all that is kept."""
        while self._kept:
            self._write()

    def _keep(self, group: Group, hulls: Hulls) -> None:
        size = bytes_of(hulls)
        while self._kept and self._held + size > self.memory:
            self._write()
        self._kept[group] = hulls
        self._held += size

    def _forget(self, group: Group) -> Hulls | None:
        hulls = self._kept.pop(group, None)
        self._held -= 0 if hulls is None else bytes_of(hulls)
        return hulls

    def _write(self) -> None:
        """The one asked for longest ago, unless the file has it already."""
        group = next(iter(self._kept))
        hulls = self._forget(group)
        if self._places[group] is None and hulls is not None:
            points = np.concatenate([_packed(hull) for hull in hulls.values()])
            place = self._file.seek(0, 2)
            with telling_of_space(tempfile.gettempdir()):
                self._file.write(points.tobytes())
                self._file.flush()
            self._places[group] = (place, tuple((which, len(hull)) for which, hull in hulls.items()))

    def _read(self, group: Group) -> Hulls:
        stored = self._places[group]
        assert stored is not None
        place, lengths = stored
        self._file.seek(place)
        found = {}
        for which, length in lengths:
            points = np.frombuffer(self._file.read(length * POINT.itemsize), dtype=POINT)
            found[which] = _unpacked(points, which[1])
        return found


def bytes_of(hulls: Hulls) -> int:
    """What hulls of one class take in memory."""
    return sum(
        HULL
        + SIZE * len(hull)
        + sum(
            column.nbytes
            for column in (hull.parameters, hull.damage, hull.kind, hull.rank, hull.right_rank, hull.operations)
        )
        for hull in hulls.values()
    )


def _packed(hull: Options) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    points = np.empty(len(hull), dtype=POINT)
    for name in ("parameters", "damage", "operations", "rank", "right_rank"):
        points[name] = getattr(hull, name)
    points["kind"] = (hull.kind[:, None] == NAMES).argmax(1)
    return points


def _unpacked(points: np.ndarray[tuple[int], np.dtype[np.void]], weight: float) -> Options:
    return Options(
        points["parameters"].astype(np.int64),
        points["damage"].astype(np.float64),
        NAMES[points["kind"]],
        points["rank"].astype(np.int64),
        points["right_rank"].astype(np.int64),
        points["operations"].astype(np.float64),
        weight,
    )
