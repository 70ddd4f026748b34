"""An evaluated experiment on the hub, and an evaluation of what lies there."""

import json

import pytest
from evaluation_inputs import evaluate_arguments
from hub_server import TOKEN, serve_hub, use_hub
from trackio.sqlite_storage import SQLiteStorage

import evaluate_lora
from mmaudio.commands.__main__ import main
from mmaudio.media.video import probe
from mmaudio.metrics.registry import PRIMARY

pytestmark = pytest.mark.slow


def test_it_is_pushed_and_evaluated_from_there(root, tmp_path, monkeypatch, capsys):
    quick = ["--metrics", PRIMARY, "--strengths", "", "--steps", "1"]
    evaluate_lora.main(evaluate_arguments(root, *quick))
    first = json.loads((root / "exp" / "metrics.json").read_text())
    monkeypatch.chdir(tmp_path)
    with serve_hub() as site:
        use_hub(site, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert main(["push", "anna/dogs", str(root / "exp"), "--samples", "3", "--with_video"]) == 0
        files = site.repositories["anna/dogs"].files
        card = files["README.md"].decode()
        assert "4 clips of 3 held-out videos" in card and "| base | adapted | difference |" in card
        assert sum(name.startswith("samples/") for name in files) == 6
        assert probe(root / "exp" / "hub" / "samples" / "03_base.mp4").audio_sample_rate is not None
        names = [name.encode() for name in ("one.mp4", "two.mp4", "three.mp4", "four", str(root))]
        assert not any(name in content for content in files.values() for name in names)
        trackers = ["--trackers", "trackio", "--project", "evaluations"]
        arguments = evaluate_arguments(root, "--lora_checkpoint", "anna/dogs", *quick, *trackers)
        evaluate_lora.main(arguments)
        again = json.loads((tmp_path / "anna" / "dogs_evaluation" / "metrics.json").read_text())
        assert again["metrics"] == first["metrics"] and again["adapter"] == "anna/dogs"
        num_requests = len(site.requests)
        capsys.readouterr()
        evaluate_lora.main([*arguments, "--offline"])
        assert "still valid, nothing to do" in capsys.readouterr().out and len(site.requests) == num_requests
    rows = SQLiteStorage.get_logs("evaluations", "dogs_evaluation evaluation")
    scalars = {name: value for row in rows for name, value in row.items()}
    assert scalars[f"evaluation/{PRIMARY}/adapted"] == pytest.approx(first["metrics"][PRIMARY]["adapted"])
    assert not (tmp_path / "anna" / "dogs_evaluation" / "evaluation").exists(), "TensorBoard's"
