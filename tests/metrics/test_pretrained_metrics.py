"""Pretrained metrics through the whole evaluation on 8 s clips, and reasons of metrics without a value."""

import json
import re

import pytest
import torch
from evaluation_inputs import ENCODERS, evaluate_arguments, random_features, write_random_adapter
from random_clap import write_random_clap
from random_model import MODEL, add_sync_classifier, write_noise_video, write_random_weights

import evaluate_lora
from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Header, load_features, shard_path, write_shard
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.features import cnn14
from mmaudio.features.desync import load_desync
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource
from mmaudio.metrics.pretrained_search import PretrainedSources, find_pretrained_metrics, load_metric_models
from mmaudio.metrics.registry import LOWER, METRICS, Metric
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.weights.registry import CNN14

VIDEOS = ("one.mp4", "two.mp4")


@pytest.fixture(scope="module")
def root(tmp_path_factory, nothing_ships, brief_vocoder):
    """Two held-out clips of 8 s, the second without a caption, and a base whose Synchformer has its classifier."""
    root = tmp_path_factory.mktemp("pretrained")
    generator = torch.Generator().manual_seed(2)
    (root / "videos").mkdir()
    clips = []
    for seed, (video, caption) in enumerate(zip(VIDEOS, ("a ball", ""), strict=True)):
        write_noise_video(root / "videos" / video, seed, CLIP_SECONDS + 0.2)
        clips.append(Clip(f"{video[:-4]}_0", video, 0.0, CLIP_SECONDS, caption, "test", -1.0, -20.0, 0.0))
        header = Header(video, [clips[-1].id], [caption], MODEL, CLIP_SECONDS, ENCODERS, "s", "p", "t")
        features = random_features(1, generator, CLIP_SECONDS)
        write_shard(shard_path(root / "features", video), header, features)
    write_clips(root / "clips.tsv", clips)
    write_random_weights(root / "weights", encoders=False)
    add_sync_classifier(root / "weights")
    write_random_clap(root / "weights" / "clap")
    folder = root / "exp" / "lora_checkpoints"
    folder.mkdir(parents=True)
    write_random_adapter(folder / "best_lora.pt", root / "weights")
    return root


@pytest.fixture(scope="module")
def results(root):
    assert evaluate_lora.main(evaluate_arguments(root, "--steps", "1", "--strengths", "")) == 0
    return json.loads((root / "exp" / "metrics.json").read_text())


@pytest.mark.slow
def test_desync_of_every_sound_is_the_model_s_own(root, results):
    desync = results["metrics"]["desync"]
    model = load_desync(MODEL, root / "weights")
    features = load_features(root / "clips.tsv", root / "features", "test", MODEL)
    scores = []
    for row, clip in enumerate(features.clips):
        (original,) = read_original_audio(root / "videos", [clip], 16_000, 128_000)
        scores.append(float(model.score(features.sync_features[row], original[None], 16_000)))
    assert desync["original"] == pytest.approx(sum(scores) / 2)
    assert all(0 <= desync[sound] <= 2 for sound in ("original", "codec", "base", "adapted"))
    assert (desync["clips"], desync["videos"]) == (2, 2)


@pytest.mark.slow
def test_clap_scores_the_clips_that_have_a_caption(results):
    clap = results["metrics"]["clap"]
    assert clap["clips"] == 1 and -1 <= clap["original"] <= 1


@pytest.mark.slow
def test_every_metric_has_a_value_or_a_reason(root, results):
    assert set(results["metrics"]) | set(results["not_computed"]) == set(METRICS)
    assert not set(results["metrics"]) & set(results["not_computed"])
    assert results["not_computed"]["diversity"] == "needs two samples per clip (--samples 2)"
    html = (root / "exp" / "report" / "index.html").read_text()
    assert "Not computed" in html and "needs two samples per clip" in html
    assert re.search(r"DeSync<small>.*?<small>original: \d", html, re.DOTALL)


@pytest.mark.slow
def test_only_requested_metrics_are_computed_and_shown(root, results):
    output = root / "requested"
    options = ("--metrics", "onset_f1, diversity", "--max_clips", "1", "--steps", "1", "--strengths", "")
    evaluate_lora.main(evaluate_arguments(root, *options, "--output", str(output)))
    requested = json.loads((output / "metrics.json").read_text())
    assert set(requested["metrics"]) == {"mel_l1_loud", "onset_f1"}
    assert set(requested["not_computed"]) == {"diversity"}
    assert requested["inputs"] != results["inputs"]
    html = (output / "report" / "index.html").read_text()
    assert "--metrics onset_f1,diversity" in html
    assert "DeSync" not in html and "Loudness difference" not in html
    first, second = ((folder / "metrics.tsv").read_text().splitlines() for folder in (root / "exp", output))
    every, few = (dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True)) for lines in (first, second))
    assert len(few) == 4 + 2 * 2 and few["id"] == every["id"]
    for name in list(few)[4:]:  # the batch has another size
        assert float(few[name]) == pytest.approx(float(every[name]), rel=1e-4)


PEAK_DIFFERENCE = Metric(
    "Peak level difference",
    LOWER,
    describes="Distance of the highest peak from that of the original.",
    limits="Everything below the peak.",
    unit="dB",
    compute=lambda c: 20 * (c.audio.abs().amax(1).log10() - c.original.audio.abs().amax().log10()).abs(),
)


@pytest.mark.slow
def test_a_metric_is_added_by_one_registry_entry(root, monkeypatch):
    monkeypatch.setitem(METRICS, "peak_difference", PEAK_DIFFERENCE)
    output = root / "added"
    options = ("--metrics", "peak_difference", "--max_clips", "1", "--steps", "1", "--strengths", "")
    evaluate_lora.main(evaluate_arguments(root, *options, "--output", str(output)))
    added = json.loads((output / "metrics.json").read_text())["metrics"]
    assert set(added) == {"mel_l1_loud", "peak_difference"}
    assert added["peak_difference"]["original"] == 0 < added["peak_difference"]["base"]
    assert "adapted_peak_difference" in (output / "metrics.tsv").read_text()
    html = (output / "report" / "index.html").read_text()
    assert all(text in html for text in (PEAK_DIFFERENCE.title, PEAK_DIFFERENCE.describes, PEAK_DIFFERENCE.limits))


def test_an_unknown_metric_name_suggests_the_nearest(root):
    with pytest.raises(ConfigError, match="onset_f1"):
        evaluate_lora.main(evaluate_arguments(root, "--metrics", "onset_f"))
    with pytest.raises(ConfigError, match="none is named"):
        evaluate_lora.main(evaluate_arguments(root, "--metrics", ","))


def test_a_synchformer_that_is_absent_or_has_no_classifier_is_a_reason(tmp_path):
    absent = find_pretrained_metrics(ModelSearch("small_16k", tmp_path), ("desync",))
    assert absent.missing["desync"].startswith("needs synchformer_state_dict.pth, which is nowhere on disk")
    shipped = find_pretrained_metrics(ModelSearch(MODEL), ("desync",))
    assert shipped.missing["desync"] == "tiny_16k's Synchformer has no offset classifier"
    assert not shipped.available and not shipped.identities


def test_a_model_that_cannot_be_loaded_is_a_reason_and_no_crash():
    def fail() -> None:
        raise WeightsError("weights of another model")

    sources = PretrainedSources([PretrainedSource(("desync",), "hash", fail)])
    metrics = load_metric_models(sources, ("desync",))
    assert (metrics.pretrained, metrics.missing) == ([], {"desync": "weights of another model"})


def test_only_requested_metrics_cause_a_download():
    assert ModelSearch("small_16k", offline=False, requested_metrics=("desync",)).may_download(("desync", "kl"))
    assert not ModelSearch("small_16k", offline=False, requested_metrics=("clap",)).may_download(("desync", "kl"))
    assert not ModelSearch("small_16k", offline=True, requested_metrics=("desync",)).may_download(("desync", "kl"))


@pytest.mark.slow
def test_absent_panns_are_a_reason_and_too_few_clips_come_first(results):
    reasons = results["not_computed"]
    assert reasons["kl"].startswith("needs Cnn14_16k_mAP=0.438.pth") and reasons["kl"] == reasons["kad"]
    assert reasons["isc"] == "2 clips: the mean of 10 splits needs 20"
    assert reasons["fd"] == "2 clips: below 513 a Frechet distance is mostly bias"


@pytest.mark.slow
def test_panns_give_kl_by_clip_and_kad_of_the_set(root, tmp_path, monkeypatch):
    monkeypatch.setattr(cnn14, "WIDTHS", (16,) * len(cnn14.WIDTHS))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cnn14.Cnn14().eval()
    torch.save({"model": model.state_dict()}, tmp_path / CNN14.name)
    for path in (root / "weights").iterdir():
        (tmp_path / path.name).symlink_to(path)
    output = tmp_path / "out"
    options = (
        "--metrics",
        "kl,kad,fd,isc",
        "--weights",
        str(tmp_path),
        "--output",
        str(output),
        "--steps",
        "1",
        "--strengths",
        "",
    )
    evaluate_lora.main(evaluate_arguments(root, *options))
    results = json.loads((output / "metrics.json").read_text())
    assert set(results["metrics"]) == {"mel_l1_loud", "kl", "kad"}
    assert results["metrics"]["kl"]["original"] == 0 and results["metrics"]["kl"]["codec"] > 0
    kad = results["metrics"]["kad"]
    assert (kad["interval"], kad["share_better"], kad["verdict"]) == (None, None, "cannot tell")
    assert results["not_computed"] == {
        "fd": "2 clips: below 2049 a Frechet distance is mostly bias",
        "isc": "2 clips: the mean of 10 splits needs 20",
    }

    html = (output / "report" / "index.html").read_text()
    assert "of the whole set" in html and "below 2049" in html
