"""DeSync as a judge: how far each sound of a clip is from the picture in time."""

from __future__ import annotations

from mmaudio.errors import MMAudioError
from mmaudio.features.desync import PART, DeSync, has_classifier, load_desync
from mmaudio.metrics.pretrained_metrics import Candidate, Opinion, Played
from mmaudio.metrics.search import Search
from mmaudio.weights import store as weights
from mmaudio.weights.registry import weights_file

NAME = "desync"


class SynchronyJudge:
    """Synchformer's audio branch and classifier, beside the features of the picture that the clip has already."""

    def __init__(self, model: DeSync) -> None:
        self.model = model

    def hear(self, played: Played) -> Opinion:
        """DeSync of each sound in seconds, the mean over its takes; NaN below 8 s."""
        seen = played.seen.to(self.model.vproj.weight.device)
        scores = {name: self.model.score(seen, waves, played.rate) for name, waves in played.waveforms.items()}
        return Opinion({name: {NAME: float(takes.mean())} for name, takes in scores.items()})


def find_synchrony(search: Search) -> Candidate | str:
    """The judge where the model's Synchformer file is there and whole, else why there is none."""
    model = search.model
    file = weights_file(model, PART)
    assert file is not None  # every model has a Synchformer
    try:
        if search.fetch(NAME):
            weights.fetch(model, (PART,), search.weights)
        if weights.missing(model, search.weights, (PART,)):
            return f"needs {file.name}, which is nowhere on disk; --metrics {NAME} without --offline fetches it"
        found = weights.load_part(model, PART, search.weights)
    except MMAudioError as error:
        return str(error)
    if not has_classifier(found.state):
        return f"{model}'s Synchformer has no offset classifier"
    return Candidate((NAME,), found.identity, lambda: SynchronyJudge(load_desync(model, search.weights, search.device)))
