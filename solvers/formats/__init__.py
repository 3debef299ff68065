"""Problems as files: OR-Library p-median, DIMACS graph coloring, clique partitioning, and our own JSON, npz, GraphML.

>>> import solvers, tempfile, pathlib
>>> problem = solvers.MedoidProblem([[0, 4], [3, 0]], K=1)
>>> path = pathlib.Path(tempfile.mkdtemp()) / "problem.json"
>>> write(problem, path)
>>> solvers.solve(read(path)).cost
3.0

A file that does not hold what it should raises ``FormatError``, which says where: file, line and column, or the key.
"""

from solvers.formats.files import FORMATS, read, write
from solvers.formats.tokens import FormatError

__all__ = ["FORMATS", "FormatError", "read", "write"]
