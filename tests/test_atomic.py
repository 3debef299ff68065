"""Files and folders are the old ones or the new ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geocolor.atomic import refuse_occupied, replace_directory, write_atomically


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(target, write)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_run_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    script = (
        "import sys, time; from pathlib import Path; from geocolor.atomic import write_atomically\n"
        "def write(path):\n"
        "    path.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.wait()
    assert target.read_text() == "old"


def test_an_interrupted_run_leaves_no_temporary(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_directory(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_whole_and_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    replace_directory(target, lambda folder: (folder / "a").write_text("1"))
    with pytest.raises(FileExistsError, match="already holds something"):
        replace_directory(target, lambda folder: (folder / "b").write_text("2"))
    assert [file.name for file in target.iterdir()] == ["a"]
    replace_directory(target, lambda folder: (folder / "b").write_text("2"), overwrite=True)
    assert [file.name for file in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_an_empty_folder_is_free_to_use(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    replace_directory(tmp_path / "out", lambda folder: (folder / "a").write_text("1"))
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_places_that_cannot_hold_a_folder_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        refuse_occupied(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        refuse_occupied(tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that no one may write to")
def test_a_place_where_not_even_root_may_write_is_refused_before_any_work() -> None:
    with pytest.raises(PermissionError, match="nothing can be made in /proc; choose another place"):
        refuse_occupied(Path("/proc/geocolor/out"))
    for name in ("geocolor/plan.json", "plan.json"):
        with pytest.raises(OSError, match=r"cannot (create|write) .*/proc.*choose another place"):
            write_atomically(Path("/proc", name), lambda path: path.write_text("x"))


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"plan\.json is a folder, not a file"):
        write_atomically(tmp_path / "plan.json", lambda path: path.write_text("x"))
    assert [*tmp_path.iterdir()] == [tmp_path / "plan.json"]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", lambda path: path.write_text("x"))
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
