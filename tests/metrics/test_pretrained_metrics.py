"""Metrics that need a judge, through the whole evaluation on 8 s clips; and metrics that have no value say why."""

import json
import re

import pytest
import torch
from random_base import MODEL, add_classifier, make_base, make_video
from random_clap import make_clap
from test_evaluate import ENCODERS, command, make_adapter, random_features

import evaluate_lora
from mmaudio.data.clips import Clip, write_clips
from mmaudio.data.feature_store import Header, load_features, shard_path, write_shard
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.evaluation.uncomputed_metrics import NEEDS
from mmaudio.features.cnn14 import Cnn14
from mmaudio.features.desync import load_desync
from mmaudio.metrics import registry as metrics
from mmaudio.metrics.distribution import inception_score
from mmaudio.metrics.panns import load_panns
from mmaudio.metrics.pretrained_metrics import Candidate, Judges
from mmaudio.metrics.pretrained_search import find_judges
from mmaudio.metrics.search import Search
from mmaudio.metrics.set_comparison import CLASSES
from mmaudio.model.spec import SECONDS
from mmaudio.report import clip_media as media
from mmaudio.weights.registry import CNN14

VIDEOS = ("one.mp4", "two.mp4")


@pytest.fixture(scope="module")
def place(tmp_path_factory, nothing_ships):
    """Two held-out clips of 8 s, the second without a caption, and a base whose Synchformer has its classifier."""
    root = tmp_path_factory.mktemp("judges")
    generator = torch.Generator().manual_seed(2)
    (root / "videos").mkdir()
    clips = []
    for seed, (video, caption) in enumerate(zip(VIDEOS, ("a ball", ""), strict=True)):
        make_video(root / "videos" / video, seed, SECONDS + 0.2)
        clips.append(Clip(f"{video[:-4]}_0", video, 0.0, SECONDS, caption, "test", -1.0, -20.0, 0.0))
        header = Header(video, [clips[-1].id], [caption], MODEL, SECONDS, ENCODERS, "s", "p", "t")
        features = random_features(1, generator, SECONDS)
        write_shard(shard_path(root / "features", video), header, features)
    write_clips(root / "clips.tsv", clips)
    make_base(root / "weights", encoders=False)
    add_classifier(root / "weights")
    make_clap(root / "weights" / "clap")
    folder = root / "exp" / "lora_checkpoints"
    folder.mkdir(parents=True)
    make_adapter(folder / "best_lora.pt", root / "weights")
    return root


@pytest.fixture(scope="module")
def done(place):
    assert evaluate_lora.main(command(place, "--steps", "1")) == 0
    return json.loads((place / "exp" / "metrics.json").read_text())


@pytest.mark.slow
def test_desync_of_every_sound_is_the_model_s_own(place, done):
    found = done["metrics"]["desync"]
    judge = load_desync(MODEL, place / "weights")
    features = load_features(place / "clips.tsv", place / "features", "test", MODEL)
    scores = []
    for row, clip in enumerate(features.clips):
        (original,) = media.original_sounds(place / "videos", [clip], 16_000, 128_000)
        scores.append(float(judge.score(features.sync_features[row], original[None], 16_000)))
    assert found["original"] == pytest.approx(sum(scores) / 2)
    assert all(0 <= found[sound] <= 2 for sound in ("original", "codec", "base", "adapted"))
    assert (found["clips"], found["videos"]) == (2, 2)


@pytest.mark.slow
def test_clap_hears_the_clips_that_have_a_caption(done):
    found = done["metrics"]["clap"]
    assert found["clips"] == 1 and -1 <= found["original"] <= 1


@pytest.mark.slow
def test_every_metric_has_a_value_or_a_reason(place, done):
    assert set(done["metrics"]) | set(done["not_computed"]) == set(metrics.METRICS)
    assert not set(done["metrics"]) & set(done["not_computed"])
    assert done["not_computed"]["diversity"] == "needs two samples per clip (--samples 2)"
    html = (place / "exp" / "report" / "index.html").read_text()
    assert "Not computed" in html and "needs two samples per clip" in html
    assert re.search(r"DeSync<small>.*?<small>original: \d", html, re.DOTALL)


@pytest.mark.slow
def test_only_the_metrics_that_are_named_are_computed_and_shown(place, done):
    output = place / "named"
    wanted = ("--metrics", "onset_f1, diversity", "--max_clips", "1", "--steps", "1")
    evaluate_lora.main(command(place, *wanted, "--output", str(output)))
    named = json.loads((output / "metrics.json").read_text())
    assert set(named["metrics"]) == {"mel_l1_loud", "onset_f1"}
    assert set(named["not_computed"]) == {"diversity"}
    assert named["inputs"] != done["inputs"]
    html = (output / "report" / "index.html").read_text()
    assert "--metrics onset_f1,diversity" in html
    assert "DeSync" not in html and "Loudness difference" not in html
    first, second = ((folder / "metrics.tsv").read_text().splitlines() for folder in (place / "exp", output))
    values = [dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True)) for lines in (first, second)]
    assert values[1].items() <= values[0].items() and len(values[1]) == 4 + 2 * 2


def test_a_name_that_is_no_metric_is_refused_with_the_nearest(place):
    with pytest.raises(ConfigError, match="onset_f1"):
        evaluate_lora.main(command(place, "--metrics", "onset_f"))
    with pytest.raises(ConfigError, match="none is named"):
        evaluate_lora.main(command(place, "--metrics", ","))


def test_a_synchformer_that_is_absent_or_only_sees_is_named(tmp_path):
    absent = find_judges(Search("small_16k", tmp_path), ("desync",))
    assert absent.missing["desync"].startswith("needs synchformer_state_dict.pth, which is nowhere on disk")
    shipped = find_judges(Search(MODEL), ("desync",))
    assert shipped.missing["desync"] == "tiny_16k's Synchformer has no offset classifier"
    assert not shipped.candidates and not shipped.identity


def test_a_judge_that_cannot_be_loaded_is_a_reason_and_no_crash():
    def fail() -> None:
        raise WeightsError("weights of another model")

    wanted = Judges([Candidate(("desync",), "hash", fail)]).load(("desync",))
    assert (wanted.judges, wanted.missing) == ([], {"desync": "weights of another model"})


def test_only_named_metrics_are_worth_a_download():
    assert Search("small_16k", offline=False, named=("desync",)).fetch("desync")
    assert not Search("small_16k", offline=False, named=("clap",)).fetch("desync")
    assert not Search("small_16k", offline=True, named=("desync",)).fetch("desync")


def test_what_clips_need_is_said_of_metrics_that_there_are():
    assert set(NEEDS) <= set(metrics.METRICS)


@pytest.mark.slow
def test_panns_that_are_absent_are_named_and_too_few_clips_before_that(done):
    absent = done["not_computed"]
    assert absent["kl"].startswith("needs Cnn14_mAP=0.431.pth") and absent["kl"] == absent["kad"] == absent["isc"]
    assert absent["fd"] == "2 clips: below 513 a Frechet distance is mostly bias"


@pytest.mark.slow
def test_panns_give_kl_by_clip_and_kad_of_the_set(place, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Cnn14().eval()
    torch.save({"model": model.state_dict()}, tmp_path / CNN14.name)
    for path in (place / "weights").iterdir():
        (tmp_path / path.name).symlink_to(path)
    output = tmp_path / "out"
    wanted = (
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
    evaluate_lora.main(command(place, *wanted))
    results = json.loads((output / "metrics.json").read_text())
    assert set(results["metrics"]) == {"mel_l1_loud", "kl", "kad", "isc"}
    assert results["metrics"]["kl"]["original"] == 0 and results["metrics"]["kl"]["codec"] > 0
    kad = results["metrics"]["kad"]
    assert (kad["interval"], kad["share_better"], kad["verdict"]) == (None, None, "cannot tell")
    assert results["not_computed"] == {"fd": "2 clips: below 2049 a Frechet distance is mostly bias"}

    features = load_features(place / "clips.tsv", place / "features", "test", MODEL)
    originals = [media.original_sounds(place / "videos", [clip], 16_000, 128_000)[0] for clip in features.clips]
    judge = load_panns(tmp_path / CNN14.name, torch.device("cpu"))
    classes = judge.rows(torch.stack(originals), 16_000)[CLASSES]
    assert results["metrics"]["isc"]["original"] == pytest.approx(inception_score(classes))
    html = (output / "report" / "index.html").read_text()
    assert "of the whole set" in html and "below 2049" in html
