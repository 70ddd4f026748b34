"""Results as TensorBoard scalars, beside those of training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mmaudio.evaluation.clip_set import HELD_OUT
from mmaudio.evaluation.results import Results


def write_scalars(folder: Path, sets: Mapping[str, Results], step: int) -> None:
    """Write base, adapted and difference of every metric into `folder`, whose old content is removed.

    They are at the adapter's `step`. Where strengths were tried, each metric is also written by strength: there the
    step is the strength in per cent.
    """
    shutil.rmtree(folder, ignore_errors=True)
    from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

    with SummaryWriter(str(folder)) as writer:
        for set_name, results in sets.items():
            for metric, comparison in results.comparisons().items():
                tag = f"evaluation {set_name}/{metric}"
                writer.add_scalar(f"{tag}/base", comparison.base, step)
                writer.add_scalar(f"{tag}/adapted", comparison.adapted, step)
                writer.add_scalar(f"{tag}/difference", comparison.difference, step)
            tag = "strength in per cent" if set_name == HELD_OUT else f"strength in per cent {set_name}"
            for strength, comparisons in results.strengths.items():
                for metric, comparison in comparisons.items():
                    writer.add_scalar(f"{tag}/{metric}", comparison.adapted, round(100 * strength))
