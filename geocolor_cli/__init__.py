"""The command line of geocolor, a package of its own so that `--help` and Ctrl-C need not wait for torch to load."""

import sys

from geocolor_cli.interrupts import leave_at_once


def main() -> None:
    """The program `geocolor`: a user's mistake is one sentence on standard error and exit status 2, Ctrl-C 130."""
    leave_at_once()
    try:
        from geocolor_cli.run import run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: the program needs {error.name or error}: pip install 'geocolor[models]'\n")
        sys.exit(2)
    run()
