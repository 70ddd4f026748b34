"""The guide's Python and YAML, word for word, run against tiny_16k and composed onto the shipped configuration.

The guide is not part of the project: its snippets are copied here. Where MMAUDIO_GUIDE names the guide's file, a test
sees to it that they are still what it says.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guide_blocks import (
    CHECKS,
    CUSTOM_CONFIGURATION,
    HOW_IT_WORKS,
    MERGING,
    METHOD_3,
    MODEL,
    NOT_CODE,
    PROGRESSIVE,
    PYTHON,
    TARGETS,
    YAML,
    settings_blocks,
)
from mini_training import build_config, clip_rows, random_features
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from video_files import write_tone_video

from mmaudio.config import CONFIG_FOLDER, TrainConfig, compose
from mmaudio.data.feature_set import build_feature_set
from mmaudio.errors import ConfigError
from mmaudio.features.mel import build_mel
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.trainer import load_network, train_adapter
from mmaudio.lora.adapter import DEFAULT_TARGETS, LoRAConfig, add_lora, expand_targets, parameter_counts, progressive
from mmaudio.lora.merge import velocity_at_random_input
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora
from mmaudio.model.networks import build_network
from mmaudio.model.spec import compute_lengths, model_spec

SECONDS = 1.2


@pytest.mark.slow
@pytest.mark.parametrize("text", settings_blocks())
def test_every_key_of_the_settings_is_accepted(tmp_path, text):
    folder = shutil.copytree(CONFIG_FOLDER, tmp_path / "config")
    (folder / "preset" / "guide.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    composed = compose(["preset=guide"], folder)
    written = OmegaConf.to_container(OmegaConf.create(text))
    assert written
    for key, value in written.items():
        place = composed.lora if key in ("rank", "alpha", "dropout", "target_modules") else composed
        for name, expected in value.items() if isinstance(value, dict) else [(key, value)]:
            setting = getattr(getattr(place, key), name) if isinstance(value, dict) else getattr(place, name)
            assert setting == expected, name


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """A video, and an adapter of a few real steps on tiny_16k: the folder that holds them."""
    folder = tmp_path_factory.mktemp("guide")
    write_tone_video(folder / "test.mp4", SECONDS)
    spec = model_spec(MODEL)
    sets = [
        build_feature_set(random_features(count, spec.network, seed), clip_rows(count, split), MODEL)
        for count, split, seed in ((6, "train", 0), (2, "val", 1))
    ]
    config = build_config(folder / "output", lora=LoRAConfig(), max_steps=8, learning_rate=3e-3)
    network, sha256 = load_network(config, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        train_adapter(network, RunInputs(config, sha256, *sets), Distributed())
    return folder


@pytest.fixture(scope="module")
def names(guide):
    """What METHOD_3 leaves: `lora_model`, `audio`, and under `said` what it printed."""
    names = {"video": guide / "test.mp4", "prompt": "audio for this video"}
    names["printed"] = run(METHOD_3, guide, names)
    return names


def run(text, guide, names):
    """Run a snippet with tiny_16k and real files for the guide's names; what it prints."""
    real = {
        "small_16k": MODEL,
        "path/to/checkpoint.pt": str(guide / "output/exp/lora_checkpoints/best_lora.pt"),
        "test.mp4": str(guide / "test.mp4"),
        "merged_model.pt": str(guide / "merged_model.pt"),
    }
    for name, value in real.items():
        text = text.replace(f"'{name}'", f"{value!r}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "guide.md", "exec"), names)
    return printed.getvalue()


def loudness(audio):
    """The mel spectrogram of a sound (samples,)."""
    return build_mel(MODEL)(audio[None])[0]


@pytest.mark.slow
def test_the_python_api_loads_prints_and_generates(names, guide):
    lora_model, audio = names["lora_model"], names["audio"]
    assert audio.shape == (compute_lengths(model_spec(MODEL).codec, SECONDS).audio_samples,)
    assert audio.isfinite().all() and 0 < audio.abs().max() <= 1
    counts = parameter_counts(lora_model.network)
    for count_text in (
        f"{counts.total:,}",
        f"{counts.trainable:,}",
        *(f"{count:,}" for count in counts.blocks.values()),
    ):
        assert f" {count_text}" in names["printed"]
    size = (guide / "output/exp/lora_checkpoints/best_lora.pt").stat().st_size
    assert f"{size / 1e6:.1f} MB in " in names["printed"]


@pytest.mark.slow
def test_strength_and_seed_change_the_audio(names, guide):
    lora_model, audio, video = names["lora_model"], names["audio"], guide / "test.mp4"
    again = lora_model.generate_from_video(video_path=video, prompt="audio for this video")
    assert torch.equal(again, audio)
    assert not torch.equal(lora_model.generate_from_video(video, "audio for this video", seed=1), audio)
    lora_model.set_strength(0)
    base = lora_model.generate_from_video(video, "audio for this video")
    plain = load_pretrained_with_lora(MODEL, device="cpu")
    lora_model.set_strength(1)
    assert (loudness(base) - loudness(audio)).abs().mean() > 0.05, "the adapter changes nothing that is heard"
    expected = plain.generate_from_video(video, "audio for this video")
    assert (loudness(base) - loudness(expected)).abs().mean() < 0.01


@pytest.mark.slow
def test_a_custom_configuration_adapts_its_targets(guide):
    variables = {}
    run(CUSTOM_CONFIGURATION, guide, variables)
    config = variables["config"]
    assert (config.rank, config.alpha, config.dropout) == (128, 256.0, 0.05)
    with pytest.raises(ConfigError, match=r"lora.rank=128: .*attn\.qkv is 96 wide"):
        load_pretrained_with_lora(MODEL, lora_config=config, device="cpu")
    with torch.device("meta"):
        model = add_lora(build_network("small_16k"), config)
    spec = model_spec("small_16k").network
    expected = [f"joint_blocks.{i}.latent_block.attn.qkv" for i in range(spec.num_joint_blocks)]
    expected += [f"fused_blocks.{i}.attn.qkv" for i in range(spec.num_fused_blocks)]
    assert sorted(lora_layers(model)) == sorted(expected)


@pytest.mark.slow
def test_a_merged_model_generates_the_same_audio(names, guide):
    lora_model, adapted = names["lora_model"], names["audio"]
    variables = dict(names)
    printed = run(MERGING, guide, variables)
    assert "merged_model.pt: " in printed and "largest difference from the adapter" in printed
    stored = torch.load(guide / "merged_model.pt", weights_only=True)
    assert list(stored) == list(build_network(MODEL).state_dict())
    network = build_network(MODEL)
    network.load_released(stored)
    network.set_duration(SECONDS)
    expected = velocity_at_random_input(lora_model.network)
    assert (velocity_at_random_input(network.eval()) - expected).abs().max() < 1e-2 * expected.abs().max()
    lora_model.set_strength(0)
    base = lora_model.generate_from_video(guide / "test.mp4", "audio for this video")
    lora_model.set_strength(1)
    merged_off, base_off = ((loudness(sound) - loudness(adapted)).abs().mean() for sound in (variables["audio"], base))
    assert merged_off < base_off / 3


@pytest.mark.slow
def test_phases_of_progressive_training_are_settings(guide):
    variables = {"LoRAConfig": LoRAConfig}
    run(PROGRESSIVE, guide, variables)
    config = TrainConfig(lora=progressive(variables["configs"]))
    ranks = [config.lora.in_phase(config.lora.phase_at(step)).rank for step in (0, 999, 1000, 2999, 3000, 5999)]
    assert ranks == [32, 32, 64, 64, 128, 128] and config.total_steps == 6000
    listed = ",".join(f"{{rank:{phase.rank},max_steps:{phase.max_steps}}}" for phase in variables["configs"])
    composed = compose([f"lora.phases=[{listed}]"])
    assert composed.total_steps == 6000 and [phase.rank for phase in composed.lora.phases] == [32, 64, 128]
    with torch.device("meta"):
        add_lora(build_network("small_16k"), config.lora)


@pytest.mark.slow
def test_the_checks_print_every_adapted_layer(names, guide):
    python, _, shell = CHECKS.partition("# Check training progress\n")
    printed = run(python, guide, names)
    applied = {
        line.removeprefix("LoRA applied to: ") for line in printed.splitlines() if line.startswith("LoRA applied")
    }
    for target in expand_targets(build_network(MODEL), list(DEFAULT_TARGETS)):
        assert {f"network.{target}.lora_{half}" for half in "AB"} <= applied
    assert names["printed"] and printed.startswith(names["printed"])
    assert shell == "tensorboard --logdir ./output/exp_name/\n"
    words = shell.replace("exp_name", "exp").split()
    shown = subprocess.run(
        [sys.executable, "-m", "tensorboard.main", *words[1:], "--inspect"],
        cwd=guide,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0 and "validation/loss" in shown.stdout, shown.stderr
    events = EventAccumulator(str(next((guide / "output" / "exp").rglob("events.out.tfevents.*"))))
    assert events.Reload().Tags()["scalars"]


@pytest.mark.slow
def test_the_targets_are_the_defaults(names):
    targeted, excluded = (block.splitlines()[1:] for block in TARGETS.split("\n\n"))
    assert tuple(line.split()[0] for line in targeted) == DEFAULT_TARGETS
    network = names["lora_model"].network
    trained = {name.split(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"joint_blocks", "fused_blocks"} and "final_layer" in excluded[-1]
    frozen_models = names["lora_model"].frozen_models
    frozen = (frozen_models.build_sampler(network).vae, frozen_models.encoders.sync, frozen_models.encoders.clip.model)
    assert not any(weight.requires_grad for module in frozen for weight in module.parameters())


@pytest.mark.slow
def test_the_formula_is_the_adapters_computation(names, guide):
    layer = names["lora_model"].network.fused_blocks[0].attn.qkv
    variables = {
        "W_original": layer.base_layer.weight,
        "A": layer.lora_A["default"].weight,
        "B": layer.lora_B["default"].weight,
        "alpha": 128.0,
        "rank": 64,
        "input": torch.randn(96, generator=torch.Generator().manual_seed(0)),
    }
    run(HOW_IT_WORKS, guide, variables)
    expected = layer(variables["input"][None, None])[0, 0] - layer.base_layer.bias
    torch.testing.assert_close(variables["output"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not os.environ.get("MMAUDIO_GUIDE"), reason="MMAUDIO_GUIDE names no file with the guide")
def test_the_snippets_are_still_the_guides():
    text = Path(os.environ["MMAUDIO_GUIDE"]).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert {content for kind, content in blocks if kind == "python" and NOT_CODE not in content} == set(PYTHON)
    yaml_blocks = {content for kind, content in blocks if kind == "yaml"}
    yaml_blocks |= {content for kind, content in blocks if kind == "bash" and re.match(r"#.*\n\w+: ", content)}
    assert yaml_blocks == set(YAML.values())
