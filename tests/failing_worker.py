"""Work that hangs, crashes or raises, in a module that a new process reads at once."""

import os
import signal
import time


def fail(failure):
    """What a decoder may do."""
    if failure == "hang":
        time.sleep(3600)
    if failure == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if failure == "raise":
        raise ValueError(failure)
    return failure.upper()
