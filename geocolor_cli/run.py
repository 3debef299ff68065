"""Running a command: torch is loaded only after the arguments are understood, and mistakes become sentences."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

from geocolor_cli.interrupts import SENTENCE, STATUS, raising
from geocolor_cli.options import DESCRIPTION, Command, Measure


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (those of the process by default) name; exits with 2 or 130 where it fails."""
    console, errors = _console(), _console(stderr=True)
    command: Any = tyro.cli(Command, prog="geocolor", description=DESCRIPTION, args=arguments)
    try:
        with errors.status("loading PyTorch and transformers …"):
            _load_quietly()
        with warnings.catch_warnings(), raising():
            warnings.showwarning = lambda message, *_args, **_kwargs: errors.print(
                Text("warning:", "yellow"), str(message), soft_wrap=True
            )
            _run_and_report(command, console)
    except KeyboardInterrupt:
        errors.print(SENTENCE)
        sys.exit(STATUS)
    except Exception as error:
        said = _out_of_memory(error, command) or _sentence(error)
        if said is None:
            raise
        errors.print(Text("error:", "red"), said, soft_wrap=True)
        sys.exit(2)


def _console(*, stderr: bool = False) -> Console:
    """One that prints brackets and colons of names as they are."""
    return Console(stderr=stderr, markup=False, emoji=False)


def _run_and_report(command: Any, console: Console) -> None:
    from geocolor import processes
    from geocolor.preflight import check_file
    from geocolor.report import write_report

    if processes.wanted() > 1 and not isinstance(command, Measure):
        raise ValueError("of all commands only `geocolor measure` runs in several processes: start this one without")
    check_file(command.json)
    report = command.run(console)
    if command.json is not None and processes.is_first():
        write_report(report, command.json)


def _load_quietly() -> None:
    """Import what all commands need, without the notes of the libraries: what goes wrong comes as an exception."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import geocolor.commands  # noqa: F401, I001 - before transformers: it says what is missing
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def _out_of_memory(error: Exception, command: Any) -> str | None:
    """A sentence where memory ran out, with the options of the command that bound it."""
    if "geocolor.memory" not in sys.modules:
        return None  # modules still load
    from geocolor.memory import ran_out, what_ran_out

    if not ran_out(error):
        return None
    options = vars(getattr(command, "source", command))
    bounds = {"memory": "--memory", "batch_size": "a smaller --batch-size", "sequence": "a smaller --sequence"}
    tries = [said for name, said in bounds.items() if name in options]
    remedy = f"try {', '.join(tries[:-1])} or {tries[-1]}" if tries else "run this where there is more"
    return f"{what_ran_out(error)}: {remedy}"


def _sentence(error: Exception) -> str | None:
    """What the error says; for one of the operating system, what, where and what to try. None for a defect."""
    if not isinstance(error, ValueError | OSError | ImportError):
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; look whether it is there, and may be read or written"
    return str(error) or type(error).__name__
