"""Work that hangs, crashes or raises, in a module that a new process reads at once."""

import os
import signal
import time


def misbehave(how):
    """What a decoder may do."""
    if how == "hang":
        time.sleep(60)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "raise":
        raise ValueError(how)
    return how.upper()
