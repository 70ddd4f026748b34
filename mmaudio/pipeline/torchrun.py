"""torchrun, without its own account of a process that has said by itself why it failed.

    python -m mmaudio.pipeline.torchrun --standalone --nproc-per-node=2 train_lora.py ...

takes torchrun's flags. The exit status is that of the process that failed first, or says which signal ended them.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(arguments: list[str]) -> int:
    """Start the processes and wait for them: the exit status, 128 and the number of a signal that ended them."""
    logging.disable(logging.ERROR)  # of torchrun alone: the processes are others
    try:
        run.main(arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
