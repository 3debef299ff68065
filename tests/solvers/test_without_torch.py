import subprocess
import sys
from pathlib import Path

PROGRAM = """
import solvers, sys
assert "ortools" not in sys.modules and "hypothesis" not in sys.modules, "import solvers must stay light"
from solvers.testing import rate_distortion_problem
costs = [[0, 4, 9], [3, 0, 8], [9, 7, 0]]
print(solvers.solve(solvers.MedoidProblem(costs, K=2)).cost)
print(solvers.solve(solvers.PairwiseProblem([[0, -1], [-1, 0]]), "symmetric_cp_sat").cost)
print(solvers.solve(rate_distortion_problem(5, 0)).status)
assert "torch" not in sys.modules and "geocolor" not in sys.modules
"""


def test_solvers_run_where_importing_torch_raises(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch must not be imported here')\n")
    root = Path(__file__).parents[2]
    program = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3.0", "-1.0", "optimal"]
