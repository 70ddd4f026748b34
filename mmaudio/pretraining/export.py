"""The last stages: weights as files of the package, clips of the base's domain beside them, and what was reached.

Evaluation takes the product's way: video files, encoders and sampler loaded from the exported files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmaudio.features.encoders import Encoders, load_encoders
from mmaudio.generation.sampler import Sampler, load_sampler, mel_of
from mmaudio.media.audio import audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import read_windows
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.metrics.onsets import onset_f1, onsets
from mmaudio.metrics.spectral import mel_l1_loud
from mmaudio.model.spec import SECONDS, model_spec
from mmaudio.pretraining.gpu_steps import CPU
from mmaudio.pretraining.shards import clip_scene, render_clip, write_clip
from mmaudio.pretraining.training_loop import Log
from mmaudio.synthetic.domains import BASE, Kind
from mmaudio.synthetic.renderer import sound_of
from mmaudio.synthetic.scenes import actor_of, stage

MODEL = "tiny_16k"
GENERAL = 12
"""Clips of the base's domain that ship with it."""


@dataclass
class Item:
    """One clip as the network and the metrics see it."""

    clip: Tensor  # (V, clip_dim)
    sync: Tensor  # (S, sync_dim)
    text: Tensor  # (L, text_dim)
    mel: Tensor  # (mels, frames)


def export(modules: dict[str, nn.Module], folder: Path) -> int:
    """Write each module's float16 weights to `folder`; returns their bytes together."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        state = {key: value.detach().half().contiguous().cpu() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    return sum((folder / f"{name}.safetensors").stat().st_size for name in modules)


def write_general(folder: Path, seed: int, first: int) -> None:
    """Write held-out clips of the base's domain, from number `first` on that have something to hit, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    number = made = 0
    while made < GENERAL:
        index = first + number
        number += 1
        if len(clip_scene(seed, index)[0].events) < 3 and made % 4:
            continue
        rendered, fps, rate = render_clip(seed, index)
        path = folder / f"general_{made:02d}.mp4"
        write_video(path, rendered.frames, fps, rendered.waveform, rate, crf=24)
        path.with_suffix(".txt").write_text(rendered.caption + "\n", encoding="utf-8")
        made += 1


def write_held_out(folder: Path, seed: int, first: int, count: int) -> list[Path]:
    """Video files with captions of the clips from number `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.mp4" for index in range(first, first + count)]
    for index, path in enumerate(paths, first):
        rendered = write_clip(path, seed, index)
        path.with_suffix(".txt").write_text(rendered.caption + "\n", encoding="utf-8")
    return paths


def read_item(path: Path, caption: str, start: float, encoders: Encoders) -> Item:
    """The features and the original's mel of the 8 s of a file from `start` on."""
    codec = encoders.spec.codec
    info = probe(path)
    window = next(read_windows(info, [start], encoders.grids(SECONDS)))
    stills, frames = (torch.stack(rows) for rows in window.frames)
    waveform, rate = read_audio(path, info)
    sound = audio_window(resample_audio(waveform, rate, codec.rate), codec.rate, start, int(SECONDS * codec.rate))
    mel = encoders.mel(sound[None].to(encoders.device))
    return Item(encoders.frames(stills), encoders.motion(frames), encoders.texts([caption])[0], mel[0].cpu())


def generate(sampler: Sampler, items: Sequence[Item], guidance: float | None = None) -> Tensor:
    """Mels (K, mels, frames) of the sounds generated for the items, seed k for item k."""
    mels = []
    for start in range(0, len(items), 8):
        rows = items[start : start + 8]
        clip, sync, text = (torch.stack([getattr(item, name) for item in rows]) for name in ("clip", "sync", "text"))
        noise = sampler.noise(range(start, start + len(rows)))
        latents = sampler.latents(clip, sync, text, noise, guidance=guidance)
        mels.append(mel_of(sampler.decode(latents), sampler.spec).cpu())
    return torch.cat(mels)


def onset_agreement(mels: Tensor, items: Sequence[Item]) -> float:
    """Mean onset F1 of generated mels against the originals'."""
    codec = model_spec(MODEL).codec
    references = onsets(torch.stack([item.mel for item in items]), codec)
    found = onsets(mels, codec)
    return float(np.mean([onset_f1(a, b) for a, b in zip(found, references, strict=True)]))


def colour_of_sound(mel: Tensor) -> Tensor:
    """Spectrum of the loudest tenth of the frames of (..., mels, frames), centred, of unit length: (..., mels)."""
    loudness = mel.mean(-2)
    loudest = loudness.topk(max(1, mel.shape[-1] // 10), -1).indices
    picked = mel.gather(-1, loudest.unsqueeze(-2).expand(*mel.shape[:-1], -1)).clamp(min=-3).mean(-1)
    return torch.nn.functional.normalize(picked - picked.mean(-1, keepdim=True), dim=-1)


def reference_sound(kind: Kind, seed: int) -> Tensor:
    """The sound (samples,) of one object of that kind alone, peak 0.95."""
    generator = np.random.default_rng((seed, 77))
    scene = stage(BASE, [actor_of(kind, 1.2, SECONDS, generator)], SECONDS, generator)
    waveform = torch.from_numpy(sound_of(scene, 16_000, generator))
    return waveform * (0.95 / waveform.abs().max())


def named_objects(encoders: Encoders, sampler: Sampler) -> tuple[float, float, int]:
    """From text alone, how often the sound is nearest to the named kind's, or to one of its shape; and of how many."""
    words = {"strike": "bouncing", "switch": "switching", "spin": "humming"}
    kinds = BASE.kinds[::3]
    references = colour_of_sound(mel_of(torch.stack([reference_sound(kind, 1) for kind in kinds]), sampler.spec))
    texts = encoders.texts([f"{_article(kind.name)} {kind.name} {words[kind.motion]}" for kind in kinds])
    clip, sync = sampler.network.empty_clip(1)[0].cpu(), sampler.network.empty_sync(1)[0].cpu()
    items = [Item(clip, sync, text, torch.empty(0)) for text in texts]
    nearest = (colour_of_sound(generate(sampler, items)) @ references.T).argmax(1).tolist()
    exact = np.mean([a == b for a, b in enumerate(nearest)])
    shape = np.mean([kinds[a].shape == kinds[b].shape for a, b in enumerate(nearest)])
    return float(exact), float(shape), len(kinds)


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def evaluate(
    folder: Path,
    videos: Sequence[Path],
    starts: Sequence[float],
    log: Log,
    what: str,
    device: torch.device = CPU,
) -> None:
    """Log what the weights in `folder` reach, in float32, on video files with captions beside them."""
    encoders = load_encoders(MODEL, folder, device, dtype=torch.float32)
    sampler = load_sampler(MODEL, folder, device)
    items = [
        read_item(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip(), start, encoders)
        for path in videos
        for start in starts
    ]
    mel = torch.stack([item.mel for item in items])
    with torch.inference_mode():
        assert encoders.vae is not None
        codec = sampler.mel(encoders.vae.encode(mel.to(device)).mean.transpose(1, 2))
    ceiling = onset_agreement(mel_of(sampler.vocoder(codec)[:, 0], sampler.spec).cpu(), items)
    log(f"evaluate {what}: {len(items)} clips; onset F1 of the codec alone {ceiling:.3f}")
    for guidance in (1.0, 2.0, 3.0, 4.5):
        made = generate(sampler, items, guidance)
        shuffled = onset_agreement(made.roll(1, 0), items)
        loud = float(mel_l1_loud(made, mel, sampler.spec.codec.log_base).nanmean())
        log(
            f"evaluate {what}: guidance {guidance:g}, onset F1 {onset_agreement(made, items):.3f} "
            f"(sounds of other clips {shuffled:.3f}), mel L1 over loud cells {loud:.3f}"
        )
    if what == "base":
        exact, shape, count = named_objects(encoders, sampler)
        log(f"evaluate text alone: exact kind {exact:.2f} (chance {1 / count:.2f}), shape {shape:.2f} of {count} names")
