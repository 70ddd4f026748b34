"""DeSync as a metric: time offset between each sound of a clip and its video, as Synchformer estimates it."""

from __future__ import annotations

from mmaudio.errors import MMAudioError
from mmaudio.features.desync import COMPONENT, DeSync, has_classifier, load_desync
from mmaudio.metrics.metric_inputs import ClipAudio
from mmaudio.metrics.pretrained_metrics import ClipScores, ModelSearch, PretrainedSource
from mmaudio.weights import store as weights
from mmaudio.weights.registry import weights_file

NAME = "desync"


class DeSyncMetric:
    """Synchformer's audio branch and classifier; the features of the video are those that the clip has already."""

    def __init__(self, model: DeSync) -> None:
        self.model = model

    def score(self, clip: ClipAudio) -> ClipScores:
        """Compute DeSync of each sound in seconds, the mean over its samples; NaN below 8 s."""
        sync_features = clip.sync_features.to(self.model.vproj.weight.device)
        scores = {
            name: self.model.score(sync_features, waveforms, clip.sample_rate)
            for name, waveforms in clip.waveforms.items()
        }
        return ClipScores({name: {NAME: float(per_sample.mean())} for name, per_sample in scores.items()})


def find_desync(search: ModelSearch, metrics: tuple[str, ...]) -> PretrainedSource | str:
    """Find the base model's Synchformer file; the reason where it is absent or has no offset classifier."""
    model = search.model
    file = weights_file(model, COMPONENT)
    assert file is not None  # every model has a Synchformer
    try:
        if search.may_download(metrics):
            weights.fetch_files(model, (COMPONENT,), search.weights)
        if weights.missing_files(model, search.weights, (COMPONENT,)):
            return f"needs {file.name}, which is nowhere on disk; --metrics {NAME} without --offline fetches it"
        synchformer = weights.load_weights(model, COMPONENT, search.weights)
    except MMAudioError as error:
        return str(error)
    if not has_classifier(synchformer.state_dict):
        return f"{model}'s Synchformer has no offset classifier"
    return PretrainedSource(
        metrics, synchformer.sha256, lambda: DeSyncMetric(load_desync(model, search.weights, search.device))
    )
