"""The results as TensorBoard scalars, beside training's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from mmaudio.evaluation.results import Results


def write_scalars(folder: Path, sets: Mapping[str, Results], step: int) -> None:
    """Write base, adapted and difference of every metric into `folder`, at the adapter's step; what was there goes.

    Where strengths were tried, each metric by strength too: there the step is the strength in per cent.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, results in sets.items():
            for metric, found in results.comparisons().items():
                values = {"base": found.base, "adapted": found.adapted, "difference": found.difference}
                for what, value in values.items():
                    writer.add_scalar(f"evaluation {name}/{metric}/{what}", value, step)
            for strength, comparisons in results.strengths.items():
                for metric, found in comparisons.items():
                    writer.add_scalar(f"strength in per cent/{metric}", found.adapted, round(100 * strength))
