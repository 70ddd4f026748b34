"""Evaluation of a trained base: onset F1 and mel error of generated audio, and kinds of object named in text.

It takes the product's way: video files, encoders and sampler loaded from the exported files. K clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio.features.encoders import Encoders, load_encoders
from mmaudio.generation.sampler import Sampler, compute_mel, load_sampler
from mmaudio.media.audio import cut_audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import read_frame_windows
from mmaudio.media.video import probe
from mmaudio.metrics.onsets import onset_f1, onset_times
from mmaudio.metrics.spectral import mel_l1_loud
from mmaudio.model.spec import CLIP_SECONDS, model_spec
from mmaudio.pretraining.objective import CPU
from mmaudio.pretraining.training_loop import Log
from mmaudio.synthetic.domains import BASE, Kind
from mmaudio.synthetic.renderer import render_audio
from mmaudio.synthetic.scenes import build_scene, describe_kind, random_actor

MODEL = "tiny_16k"
GUIDANCE_SCALES = (1.0, 2.0, 3.0, 4.5)
CLIPS_PER_CHUNK = 8
"""Clips that are generated at once."""


@dataclass
class EncodedClip:
    """One clip's features for the network, and its mel spectrogram for the metrics."""

    clip: Tensor  # (V, clip_dim)
    sync: Tensor  # (S, sync_dim)
    text: Tensor  # (L, text_dim)
    mel: Tensor  # (mels, frames)


def encode_clip(path: Path, caption: str, start: float, encoders: Encoders) -> EncodedClip:
    """The features and the original's mel of the 8 s of a file from `start` on."""
    sample_rate = encoders.spec.codec.sample_rate
    info = probe(path)
    window = next(read_frame_windows(info, [start], encoders.frame_grids(CLIP_SECONDS)))
    stills, frames = (torch.stack(rows) for rows in window.frames)
    waveform, native_rate = read_audio(path, info)
    waveform = resample_audio(waveform, native_rate, sample_rate)
    audio = cut_audio_window(waveform, sample_rate, start, int(CLIP_SECONDS * sample_rate))
    mel = encoders.mel(audio[None].to(encoders.device))
    clip, sync = encoders.encode_clip_frames(stills), encoders.encode_sync_frames(frames)
    return EncodedClip(clip, sync, encoders.encode_texts([caption])[0], mel[0].cpu())


def generate_mels(sampler: Sampler, clips: Sequence[EncodedClip], guidance_scale: float | None = None) -> Tensor:
    """Mels (K, mels, frames) of the audio generated for the clips, seed k for clip k."""
    mels = []
    for start in range(0, len(clips), CLIPS_PER_CHUNK):
        rows = clips[start : start + CLIPS_PER_CHUNK]
        clip, sync, text = (torch.stack([getattr(row, name) for row in rows]) for name in ("clip", "sync", "text"))
        noise = sampler.draw_noise(range(start, start + len(rows)))
        latents = sampler.sample_latents(clip, sync, text, noise, guidance_scale=guidance_scale)
        mels.append(compute_mel(sampler.decode(latents), sampler.spec).cpu())
    return torch.cat(mels)


def mean_onset_f1(mels: Tensor, clips: Sequence[EncodedClip]) -> float:
    """Mean onset F1 of generated mels against the originals'."""
    codec = model_spec(MODEL).codec
    references = onset_times(torch.stack([clip.mel for clip in clips]), codec)
    generated = onset_times(mels, codec)
    return float(np.mean([onset_f1(times, reference) for times, reference in zip(generated, references, strict=True)]))


def loud_spectrum(mel: Tensor) -> Tensor:
    """Spectrum of the loudest tenth of the frames of (..., mels, frames), centred, of unit length: (..., mels)."""
    loudness = mel.mean(-2)
    loudest = loudness.topk(max(1, mel.shape[-1] // 10), -1).indices
    spectrum = mel.gather(-1, loudest.unsqueeze(-2).expand(*mel.shape[:-1], -1)).clamp(min=-3).mean(-1)
    return torch.nn.functional.normalize(spectrum - spectrum.mean(-1, keepdim=True), dim=-1)


def reference_waveform(kind: Kind, seed: int) -> Tensor:
    """The audio (samples,) of one object of that kind alone, peak 0.95."""
    generator = np.random.default_rng((seed, 77))
    scene = build_scene(BASE, [random_actor(kind, 1.2, CLIP_SECONDS, generator)], CLIP_SECONDS, generator)
    waveform = torch.from_numpy(render_audio(scene, 16_000, generator))
    return waveform * (0.95 / waveform.abs().max())


def text_accuracy(encoders: Encoders, sampler: Sampler) -> tuple[float, float, int]:
    """From text alone, how often the audio is nearest to the named kind's, or to one of its shape; and of how many."""
    kinds = BASE.kinds[::3]
    references = loud_spectrum(compute_mel(torch.stack([reference_waveform(kind, 1) for kind in kinds]), sampler.spec))
    texts = encoders.encode_texts([describe_kind(kind) for kind in kinds])
    clip, sync = sampler.network.empty_clip(1)[0].cpu(), sampler.network.empty_sync(1)[0].cpu()
    clips = [EncodedClip(clip, sync, text, torch.empty(0)) for text in texts]
    nearest = (loud_spectrum(generate_mels(sampler, clips)) @ references.T).argmax(1).tolist()
    exact = np.mean([a == b for a, b in enumerate(nearest)])
    shape = np.mean([kinds[a].shape == kinds[b].shape for a, b in enumerate(nearest)])
    return float(exact), float(shape), len(kinds)


def evaluate(
    folder: Path,
    videos: Sequence[Path],
    starts: Sequence[float],
    log: Log,
    label: str,
    device: torch.device = CPU,
) -> None:
    """Log the metrics of the weights in `folder`, in float32, on video files with captions beside them."""
    encoders = load_encoders(MODEL, folder, device, dtype=torch.float32)
    sampler = load_sampler(MODEL, folder, device)
    clips = [
        encode_clip(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip(), start, encoders)
        for path in videos
        for start in starts
    ]
    originals = torch.stack([clip.mel for clip in clips])
    with torch.inference_mode():
        assert encoders.vae is not None
        decoded = sampler.decode_mel(encoders.vae.encode(originals.to(device)).mean.transpose(1, 2))
    codec_f1 = mean_onset_f1(compute_mel(sampler.vocoder(decoded)[:, 0], sampler.spec).cpu(), clips)
    log(f"evaluate {label}: {len(clips)} clips; onset F1 of the codec alone {codec_f1:.3f}")
    for guidance_scale in GUIDANCE_SCALES:
        generated = generate_mels(sampler, clips, guidance_scale)
        shuffled_f1 = mean_onset_f1(generated.roll(1, 0), clips)
        loud_error = float(mel_l1_loud(generated, originals, sampler.spec.codec.log_base).nanmean())
        log(
            f"evaluate {label}: guidance {guidance_scale:g}, onset F1 {mean_onset_f1(generated, clips):.3f} "
            f"(audio of other clips {shuffled_f1:.3f}), mel L1 over loud cells {loud_error:.3f}"
        )


def evaluate_text(folder: Path, log: Log, device: torch.device = CPU) -> None:
    """Log how often audio generated from text alone is that of the named kind of object."""
    encoders = load_encoders(MODEL, folder, device, dtype=torch.float32)
    exact, shape, count = text_accuracy(encoders, load_sampler(MODEL, folder, device))
    log(f"evaluate text alone: exact kind {exact:.2f} (chance {1 / count:.2f}), shape {shape:.2f} of {count} names")
