"""torchrun without its own report of a failed process, which has printed its error itself.

    python -m mmaudio.pipeline.torchrun --standalone --nproc-per-node=2 train_lora.py ...

The flags are those of torchrun. The exit status is that of the process that failed first, or 128 plus the signal.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(arguments: list[str]) -> int:
    """Start the processes and wait for them; returns the exit status, 128 plus the number of a signal."""
    cli.end_start()
    logging.disable(logging.ERROR)  # only of torchrun, not of the processes that it starts
    try:
        run.main(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
