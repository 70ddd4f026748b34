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
from media import make_video
from omegaconf import OmegaConf
from small_world import clip_rows, config, random_features
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmaudio.config import FOLDER, TrainConfig, compose
from mmaudio.data.feature_store import feature_set
from mmaudio.errors import ConfigError
from mmaudio.features.mel import build_mel
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.trainer import load_network, train_on
from mmaudio.lora.adapter import DEFAULT_TARGETS, LoRAConfig, add_lora, expand_targets, parameter_counts, progressive
from mmaudio.lora.merge import velocity_at_random
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora
from mmaudio.model.networks import build_network
from mmaudio.model.spec import lengths, model_spec

TARGETS = """\
# ✅ TARGETED (where adaptation happens)
joint_blocks[*].latent_block.attn.qkv    # Cross-modal attention
joint_blocks[*].latent_block.ffn          # Reasoning MLP
joint_blocks[*].clip_block.attn.qkv       # Video attention  
joint_blocks[*].clip_block.ffn            # Video MLP
joint_blocks[*].text_block.attn.qkv       # Text attention
joint_blocks[*].text_block.ffn            # Text MLP
fused_blocks[*].attn.qkv                  # Final attention
fused_blocks[*].ffn                       # Final MLP

# ❌ PRESERVED (general knowledge kept intact)
CLIP model                                # Visual understanding
Synchformer                              # Temporal synchronization  
VAE/AutoEncoder                          # Audio latents
BigVGAN                                  # Audio synthesis
input_projections                        # Feature mapping
final_layer                              # Output projection
"""
HOW_IT_WORKS = """\
# Original transformation
output = W_original @ input

# LoRA transformation  
output = W_original @ input + (B @ A @ input) * (alpha / rank)
#        ^preserved^          ^adaptation^

# Where:
# - W_original: Frozen pretrained weights (preserve knowledge)
# - A, B: Small learnable matrices (rank << hidden_dim)
# - alpha/rank: Scaling factor
"""
METHOD_3 = """\
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora

# Load model with LoRA
lora_model = load_pretrained_with_lora(
    model_name='small_16k',
    lora_checkpoint='path/to/checkpoint.pt'
)

# Print LoRA info
lora_model.print_parameter_info()

# Generate audio
audio = lora_model.generate_from_video(
    video_path='test.mp4',
    prompt='audio for this video'
)
"""
CUSTOM_CONFIGURATION = """\
from mmaudio.lora.adapter import LoRAConfig

# Custom configuration
config = LoRAConfig(
    rank=128,                    # Higher capacity
    alpha=256.0,                 # Stronger adaptation
    dropout=0.05,                # Less regularization
    target_modules=[             # Custom targets
        "joint_blocks.*.latent_block.attn.qkv",
        "fused_blocks.*.attn.qkv",
    ]
)
"""
MERGING = """\
# Merge LoRA weights for deployment
merged_model = lora_model.merge_and_save('merged_model.pt')

# Use merged model (no LoRA overhead)
audio = merged_model.generate(video, prompt)
"""
PROGRESSIVE = """\
# Start with small rank, increase if needed
configs = [
    LoRAConfig(rank=32, max_steps=1000),   # Phase 1
    LoRAConfig(rank=64, max_steps=2000),   # Phase 2  
    LoRAConfig(rank=128, max_steps=3000),  # Phase 3
]
"""
CHECKS = """\
# Check LoRA is applied correctly
lora_model.print_parameter_info()
# Should show ~10M trainable parameters

# Verify target modules
for name, module in lora_model.named_modules():
    if 'lora' in name:
        print(f"LoRA applied to: {name}")

# Check training progress
tensorboard --logdir ./output/exp_name/
"""
PYTHON = (TARGETS, HOW_IT_WORKS, METHOD_3, CUSTOM_CONFIGURATION, MERGING, PROGRESSIVE, CHECKS)
NOT_CODE = "Base model memory:      8GB"
"""Begins the one block called python that is a table of claims."""

YAML = {
    "configuration": """\
rank: 64              # Low-rank bottleneck
alpha: 128.0          # Scaling factor (2x rank)
dropout: 0.1          # Regularization
learning_rate: 5e-4   # 10x higher than full fine-tuning
""",
    "basic": """\
# config/lora_config.yaml
lora:
  rank: 64              # Higher rank = more capacity (16, 32, 64, 128)
  alpha: 128.0          # Scaling (typically 2x rank)
  dropout: 0.1          # Regularization (0.0 to 0.3)
""",
    "training": """\
# Optimized for small datasets
batch_size: 8                     # Larger batches possible with LoRA
gradient_accumulation_steps: 4    # Effective batch = 32
learning_rate: 5e-4               # Higher LR works with LoRA
max_steps: 3000                   # Faster convergence
warmup_steps: 200
""",
    "hardware": """\
# A100 optimization
amp: true                         # Mixed precision
gradient_checkpointing: true      # Memory efficiency
compile: false                    # Stability for LoRA
""",
    "poor results": """\
# Increase adaptation capacity
lora:
  rank: 128             # Double the rank
  alpha: 256.0          # Double the alpha
  dropout: 0.05         # Reduce regularization

# Increase training
max_steps: 5000         # More training steps
learning_rate: 1e-3     # Higher learning rate
""",
    "overfitting": """\
# Increase regularization
lora:
  dropout: 0.2          # More dropout
  alpha: 64.0           # Reduce scaling

# Reduce training
max_steps: 2000         # Fewer steps
learning_rate: 2e-4     # Lower learning rate
""",
    "dataset sizes": """\
# Very small (5-10 videos)
rank: 32
max_steps: 1500
learning_rate: 2e-4

# Small (10-50 videos)  
rank: 64
max_steps: 3000
learning_rate: 5e-4

# Medium (50+ videos)
rank: 128
max_steps: 5000
learning_rate: 1e-3
""",
    "out of memory": """\
# Reduce batch size
batch_size: 4
gradient_accumulation_steps: 8

# Enable checkpointing
gradient_checkpointing: true
""",
    "no improvement": """\
# Increase LoRA capacity
rank: 128
alpha: 256.0

# Check target modules
target_modules: [...] # Ensure key modules included
""",
    "unstable": """\
# Reduce learning rate
learning_rate: 2e-4

# Add warmup
warmup_steps: 500
""",
    "poor generalization": """\
# Increase regularization
dropout: 0.2
weight_decay: 0.02

# Use validation split
validation:
  enabled: true
  split_ratio: 0.2
""",
}
"""The settings, by the guide's sections."""
SECONDS = 1.2
MODEL = "tiny_16k"


def settings():
    """Each settings block as (name, text); the dataset sizes are three, each with the same keys."""
    for name, text in YAML.items():
        parts = text.strip().split("\n\n") if name == "dataset sizes" else [text]
        for number, part in enumerate(parts):
            yield pytest.param(part.replace("[...]", "['fused_blocks[*].attn.qkv']"), id=f"{name} {number}".strip(" 0"))


@pytest.mark.slow
@pytest.mark.parametrize("text", settings())
def test_every_key_of_the_settings_is_accepted(tmp_path, text):
    folder = shutil.copytree(FOLDER, tmp_path / "config")
    (folder / "preset" / "guide.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    composed = compose(["preset=guide"], folder)
    written = OmegaConf.to_container(OmegaConf.create(text))
    assert written
    for key, value in written.items():
        place = composed.lora if key in ("rank", "alpha", "dropout", "target_modules") else composed
        for name, expected in value.items() if isinstance(value, dict) else [(key, value)]:
            found = getattr(getattr(place, key), name) if isinstance(value, dict) else getattr(place, name)
            assert found == expected, name


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """A video, and an adapter of a few real steps on tiny_16k: the folder that holds them."""
    folder = tmp_path_factory.mktemp("guide")
    make_video(folder / "test.mp4", SECONDS)
    spec = model_spec(MODEL)
    sets = [
        feature_set(random_features(count, spec.network, seed), clip_rows(count, split), MODEL)
        for count, split, seed in ((6, "train", 0), (2, "val", 1))
    ]
    chosen = config(folder / "output", lora=LoRAConfig(), max_steps=8, learning_rate=3e-3)
    network, sha256 = load_network(chosen, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        train_on(network, sha256, chosen, *sets, Team())
    return folder


@pytest.fixture(scope="module")
def names(guide):
    """What METHOD_3 leaves: `lora_model`, `audio`, and under `said` what it printed."""
    found = {"video": guide / "test.mp4", "prompt": "audio for this video"}
    found["said"] = run(METHOD_3, guide, found)
    return found


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
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, "guide.md", "exec"), names)
    return said.getvalue()


def loudness(audio):
    """The mel spectrogram of a sound (samples,)."""
    return build_mel(MODEL)(audio[None])[0]


@pytest.mark.slow
def test_the_python_api_loads_tells_and_generates(names, guide):
    lora_model, audio = names["lora_model"], names["audio"]
    assert audio.shape == (lengths(model_spec(MODEL).codec, SECONDS).samples,)
    assert audio.isfinite().all() and 0 < audio.abs().max() <= 1
    counts = parameter_counts(lora_model.network)
    for said in (f"{counts.total:,}", f"{counts.trainable:,}", *(f"{count:,}" for count in counts.blocks.values())):
        assert f" {said}" in names["said"]
    size = (guide / "output/exp/lora_checkpoints/best_lora.pt").stat().st_size
    assert f"{size / 1e6:.1f} MB in " in names["said"]


@pytest.mark.slow
def test_strength_and_seed_reach_the_sound(names, guide):
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
def test_a_custom_configuration_adapts_what_it_names(guide):
    found = {}
    run(CUSTOM_CONFIGURATION, guide, found)
    chosen = found["config"]
    assert (chosen.rank, chosen.alpha, chosen.dropout) == (128, 256.0, 0.05)
    with pytest.raises(ConfigError, match=r"lora.rank=128: .*attn\.qkv is 96 wide"):
        load_pretrained_with_lora(MODEL, lora_config=chosen, device="cpu")
    with torch.device("meta"):
        model = add_lora(build_network("small_16k"), chosen)
    spec = model_spec("small_16k").network
    expected = [f"joint_blocks.{i}.latent_block.attn.qkv" for i in range(spec.joint_blocks)]
    expected += [f"fused_blocks.{i}.attn.qkv" for i in range(spec.fused_blocks)]
    assert sorted(lora_layers(model)) == sorted(expected)


@pytest.mark.slow
def test_a_merged_model_sounds_the_same(names, guide):
    lora_model, adapted = names["lora_model"], names["audio"]
    found = dict(names)
    said = run(MERGING, guide, found)
    assert "merged_model.pt: " in said and "largest difference from the adapter" in said
    stored = torch.load(guide / "merged_model.pt", weights_only=True)
    assert list(stored) == list(build_network(MODEL).state_dict())
    network = build_network(MODEL)
    network.load_released(stored)
    network.set_duration(SECONDS)
    expected = velocity_at_random(lora_model.network)
    assert (velocity_at_random(network.eval()) - expected).abs().max() < 1e-2 * expected.abs().max()
    lora_model.set_strength(0)
    base = lora_model.generate_from_video(guide / "test.mp4", "audio for this video")
    lora_model.set_strength(1)
    merged_off, base_off = ((loudness(sound) - loudness(adapted)).abs().mean() for sound in (found["audio"], base))
    assert merged_off < base_off / 3


@pytest.mark.slow
def test_phases_of_progressive_training_are_settings(guide):
    found = {"LoRAConfig": LoRAConfig}
    run(PROGRESSIVE, guide, found)
    config = TrainConfig(lora=progressive(found["configs"]))
    ranks = [config.lora.in_phase(config.lora.phase_at(step)).rank for step in (0, 999, 1000, 2999, 3000, 5999)]
    assert ranks == [32, 32, 64, 64, 128, 128] and config.steps == 6000
    listed = ",".join(f"{{rank:{phase.rank},max_steps:{phase.max_steps}}}" for phase in found["configs"])
    composed = compose([f"lora.phases=[{listed}]"])
    assert composed.steps == 6000 and [phase.rank for phase in composed.lora.phases] == [32, 64, 128]
    with torch.device("meta"):
        add_lora(build_network("small_16k"), config.lora)


@pytest.mark.slow
def test_the_checks_show_every_adapted_layer_and_the_progress(names, guide):
    python, _, shell = CHECKS.partition("# Check training progress\n")
    said = run(python, guide, names)
    applied = {line.removeprefix("LoRA applied to: ") for line in said.splitlines() if line.startswith("LoRA applied")}
    for target in expand_targets(build_network(MODEL), list(DEFAULT_TARGETS)):
        assert {f"network.{target}.lora_{half}" for half in "AB"} <= applied
    assert names["said"] and said.startswith(names["said"])
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
    targeted, kept = (block.splitlines()[1:] for block in TARGETS.split("\n\n"))
    assert tuple(line.split()[0] for line in targeted) == DEFAULT_TARGETS
    network = names["lora_model"].network
    trained = {name.split(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"joint_blocks", "fused_blocks"} and "final_layer" in kept[-1]
    surroundings = names["lora_model"].surroundings
    frozen = (surroundings.sampler(network).vae, surroundings.encoders.sync, surroundings.encoders.clip.model)
    assert not any(weight.requires_grad for module in frozen for weight in module.parameters())


@pytest.mark.slow
def test_the_formula_is_what_is_computed(names, guide):
    layer = names["lora_model"].network.fused_blocks[0].attn.qkv
    found = {
        "W_original": layer.base_layer.weight,
        "A": layer.lora_A["default"].weight,
        "B": layer.lora_B["default"].weight,
        "alpha": 128.0,
        "rank": 64,
        "input": torch.randn(96, generator=torch.Generator().manual_seed(0)),
    }
    run(HOW_IT_WORKS, guide, found)
    expected = layer(found["input"][None, None])[0, 0] - layer.base_layer.bias
    torch.testing.assert_close(found["output"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not os.environ.get("MMAUDIO_GUIDE"), reason="MMAUDIO_GUIDE names no file with the guide")
def test_the_snippets_are_still_the_guides():
    text = Path(os.environ["MMAUDIO_GUIDE"]).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert {content for kind, content in blocks if kind == "python" and NOT_CODE not in content} == set(PYTHON)
    found = {content for kind, content in blocks if kind == "yaml"}
    found |= {content for kind, content in blocks if kind == "bash" and re.match(r"#.*\n\w+: ", content)}
    assert found == set(YAML.values())
