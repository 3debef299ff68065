"""Commands, killed over and over: `python -m tests.killed RUNS.JSON`, run where their arguments hold.

The file lists runs {"out", "arguments", "moments"}. Each attempt is the command itself, run in a fork of this process
(which has loaded torch already) until the next moment comes: a piece of the journal beside `out` that is there and
holds what the moment says ("file" or "file:text"), or so many seconds. Then it is killed by SIGKILL; after the last
moment it may end. A run without moments is never killed. What was said is printed, every run below its `out`.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geocolor.journal import journal_folder
from geocolor_cli.run import run


def main(runs: Sequence[dict[str, Any]]) -> None:
    for each in runs:
        print(f"=== {each['out']}", flush=True)
        arguments = [*each["arguments"], "-o", each["out"]]
        if not each["moments"]:
            run(arguments)  # here, so that what is loaded late is loaded for all forks
            continue
        status = signal.SIGKILL
        for moment in [*each["moments"], "0:ever"]:
            status = attempt(arguments, come(journal_folder(Path(each["out"])), moment))
            print(f"--- {moment}: {'killed' if status == signal.SIGKILL else f'ended with {status}'}", flush=True)
            if status != signal.SIGKILL:
                break
            if Path(each["out"]).exists() and not journal_folder(Path(each["out"])).exists():
                status = 0  # all was done but to say so
                break
        if status:
            sys.exit(status)


def come(folder: Path, moment: str) -> Callable[[], bool]:
    """Whether a moment has come."""
    with contextlib.suppress(ValueError):
        until = time.monotonic() + float(moment)
        return lambda: time.monotonic() > until
    name, _, text = moment.partition(":")
    file = folder / name
    return lambda: file.exists() and text.encode() in file.read_bytes()


def attempt(arguments: Sequence[str], over: Callable[[], bool]) -> int:
    """Run the command until it is over or ends by itself; the signal that ended it, or its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
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
        with contextlib.suppress(OSError):  # a piece may vanish while it is looked at
            if over():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
