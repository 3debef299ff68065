"""A command, killed over and over: `python -m tests.killed OUT MOMENTS -- ARGUMENTS`, run where the arguments hold.

Each attempt is the command itself, run in a fork of this process (which has loaded torch already) until one of the
moments comes: a piece of the journal beside OUT that holds what the moment says ("file" or "file:text"), or so many
seconds. Then it is killed; at last it may end. Prints what every attempt said.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from geocolor.journal import journal_folder
from geocolor_cli.run import run


def main(out: Path, moments: Sequence[str], arguments: Sequence[str]) -> None:
    for moment in moments:
        status = attempt(arguments, come(journal_folder(out), moment))
        print(f"--- {moment}: {'killed' if status == signal.SIGKILL else f'ended with {status}'}", flush=True)
        if status != signal.SIGKILL:
            sys.exit(f"{moment} never came")
    status = attempt(arguments, lambda: False)
    print(f"--- ended with {status}", flush=True)
    sys.exit(status)


def come(folder: Path, moment: str) -> Callable[[], bool]:
    """Whether a moment has come that was not there when asked first."""
    with contextlib.suppress(ValueError):
        until = time.monotonic() + float(moment)
        return lambda: time.monotonic() > until
    name, _, text = moment.partition(":")
    file = folder / name
    return lambda: file.exists() and text.encode() in file.read_bytes()


def attempt(arguments: Sequence[str], over: Callable[[], bool]) -> int:
    """Run the command until it is over or ends by itself; the signal that ended it, or its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(1, 2)
            run(arguments)
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else os.WTERMSIG(status)
        if over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(Path(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :])
