"""README's commands run as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone to the commands, and takes their output."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "geocolor").mkdir()
    (folder / "geocolor" / "embedded").symlink_to(ROOT / "geocolor" / "embedded")
    (folder / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_the_python_blocks_run_one_after_the_other(checkout: Path) -> None:
    script = checkout / "readme.py"
    script.write_text("\n".join(blocks("python")))
    (checkout / "geocolor").rename(checkout / "aside")  # the installed package is meant
    try:
        finished = run([sys.executable, str(script)], checkout)
    finally:
        (checkout / "aside").rename(checkout / "geocolor")
    assert finished.returncode == 0, finished.stderr
    assert "optimal" in finished.stdout
    assert (checkout / "smaller" / "model.safetensors").exists()
    assert (checkout / "dense" / "model.safetensors").exists()


def test_the_shell_commands_run_one_after_the_other(checkout: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    here = Path(sys.executable).parent
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program in ("geocolor", "python")
        finished = run([str(here / program), *arguments], checkout)
        assert finished.returncode == 0, f"{line}\n{finished.stderr}"
    assert (checkout / "planned" / "plan.png").exists()
    assert (checkout / "evaluation.json").exists()
    assert (checkout / "answer.json").exists()


def test_make_knows_the_commands_that_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_file_that_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
