"""Coverage-guided fuzzing of one reader with atheris: `python -m tests.fuzz plan -max_total_time=300`.

What follows the reader's name goes to libFuzzer. Inputs are the bytes of a file (of one of the files of a folder, whose
number is the first byte); checksums are made to fit half of the time, so that what lies behind them is reached too.
A crash is any exception but a sentence, a damaged file that was read as another value, or more than a GiB of memory.
"""

import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["geocolor", "solvers"]):
    from tests.fuzz.reader import good, sentence
    from tests.fuzz.readers import READERS

import json

MOST_MEMORY = 1 << 30


def held() -> int:
    """Bytes of data that the process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in {reader.name for reader in READERS}:
        sys.exit(f"usage: python -m tests.fuzz READER [libFuzzer's options]; readers: {[r.name for r in READERS]}")
    name = sys.argv.pop(1)
    reader = next(reader for reader in READERS if reader.name == name)
    with tempfile.TemporaryDirectory() as folder:
        path, seeds = reader.place(Path(folder)), Path(folder) / "seeds"
        files, value = good(reader, path)
        names = sorted(files)
        seeds.mkdir()
        for number, name in enumerate(names):
            (seeds / str(number)).write_bytes(bytes([number]) + files[name])
        (seeds / "document").write_bytes(b"\xff" + json.dumps(reader.document(path)).encode())

        def restore() -> None:
            for name, whole in files.items():
                file = path / name if name else path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(whole)

        def one(data: bytes) -> None:
            try:
                if data[:1] >= b"\x80":  # a document whose checksums fit
                    try:
                        document = json.loads(data[1:])
                    except (ValueError, RecursionError):
                        return
                    try:
                        reader.sign(path, document)
                    except UnicodeEncodeError:
                        return
                    told, _ = sentence(reader, path)
                    assert told is None or str(path) in told, f"the sentence does not name the file: {told}"
                    return
                name = names[data[0] % len(names)] if data else names[0]
                file = path / name if name else path
                file.write_bytes(data[1:])
                told, found = sentence(reader, path)
                assert reader.accepts(told, name, path, found, value), told or f"another value was read from {file}"
            finally:
                restore()

        resource.setrlimit(resource.RLIMIT_DATA, (held() + MOST_MEMORY, -1))
        atheris.Setup([*sys.argv, str(seeds)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
