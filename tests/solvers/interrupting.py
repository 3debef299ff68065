"""Ctrl-C while HiGHS works: a process of its own that is sent the signal half a second after its first call."""

import subprocess
import sys
from pathlib import Path

SIGNALS = """
import os, signal, threading
import highspy, numpy as np
import solvers

native, begun = highspy.Highs.run, []

def run_and_signal(self):
    if not begun:
        begun.append(threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)))
        begun[0].start()
    return native(self)

highspy.Highs.run = run_and_signal
"""


def interrupted_in_highs(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that knows ``np`` and ``solvers`` and solves something by HiGHS."""
    command = [sys.executable, "-c", SIGNALS + program]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
