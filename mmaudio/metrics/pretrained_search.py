"""Which judges there are for the metrics that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mmaudio.metrics import panns
from mmaudio.metrics.clap import find_clap
from mmaudio.metrics.desync_score import find_synchrony
from mmaudio.metrics.pretrained_metrics import Candidate, Judges
from mmaudio.metrics.search import Search

FINDERS: Mapping[tuple[str, ...], Callable[[Search], Candidate | str]] = {
    ("desync",): find_synchrony,
    ("clap",): find_clap,
    panns.METRICS: panns.find_panns,
}
"""What looks for the judge of some metrics: the judge, or why there is none."""


def find_judges(search: Search, names: Sequence[str]) -> Judges:
    """The judges of the metrics called `names`, and why others are not there; nothing is loaded."""
    candidates: list[Candidate] = []
    missing: dict[str, str] = {}
    for metrics, find in FINDERS.items():
        if not set(metrics) & set(names):
            continue
        found = find(search)
        if isinstance(found, str):
            missing |= dict.fromkeys(metrics, found)
        else:
            candidates.append(found)
    return Judges(candidates, missing)
