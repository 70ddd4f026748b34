"""Audio samples during training: a few held-out clips as audio, mel spectrograms and videos, from the same noise.

Each clip is shown three times: ground truth, base model and adapter.

B clips, N latent tokens, C latent channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.clip_table import videos_outside
from mmaudio.data.clips import Clip
from mmaudio.data.empty_captions import fill_empty_captions
from mmaudio.data.feature_set import AnyFeatureSet, FeatureSet
from mmaudio.errors import WeightsError
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.generation.sampler import Sampler, load_sampler
from mmaudio.media.audio_file import write_audio
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.mux import mux_audio, write_video
from mmaudio.media.video import probe
from mmaudio.model.networks import MMAudio
from mmaudio.utils.files import atomic_write
from mmaudio.weights import store as weights

GAP = 4
"""Pixels between two spectrograms."""
FPS = 10
"""Frames per second of the videos."""
MAX_SIDE = 320
"""Longest side of the videos in pixels."""


@dataclass(frozen=True)
class SampleClip:
    """One clip's spectrograms and audio."""

    clip: Clip
    spectrograms: npt.NDArray[np.uint8]
    """Mel spectrograms of the waveforms, one above the other (H, W, 3)."""
    waveforms: dict[str, Tensor]
    """`truth` (decoded from the codec's latents) where there is one, `base`, `adapted`: (samples,)."""

    @property
    def name(self) -> str:
        """The clip's id."""
        return self.clip.id


@dataclass(frozen=True)
class SampleGenerator:
    """The clips to show and the sampler to generate them with, around the network in training."""

    sampler: Sampler
    clips: FeatureSet
    videos: Path | None = None
    """The folder of source videos; None: audio and spectrograms alone."""
    has_truth: bool = True
    """Whether the clips have latents of their own sound."""

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.sampler.spec.codec.sample_rate

    @property
    def num_solver_steps(self) -> int:
        """Of `generate`, without and with the adapter."""
        return 2 * self.sampler.spec.num_steps

    def generate(self, state: TrainState, progress: Callable[[range], Iterable[int]] = iter) -> Iterator[SampleClip]:
        """Generate every clip without and with the adapter (its EMA where there is one).

        The solver's steps pass through `progress`.
        """
        state.model.eval()
        latents = {"truth": self.clips.mean} if self.has_truth else {}
        with state.without_adapter():
            latents["base"] = self._generate_latents(progress)
        with state.use_ema():
            latents["adapted"] = self._generate_latents(progress)
        for row, clip in enumerate(self.clips.clips):
            clip_latents = {kind: values[row : row + 1] for kind, values in latents.items()}
            spectrograms = draw_mels([self.sampler.decode_mel(latent)[0] for latent in clip_latents.values()])
            waveforms = {kind: self.sampler.decode(latent)[0].cpu() for kind, latent in clip_latents.items()}
            yield SampleClip(clip, spectrograms, waveforms)

    def _generate_latents(self, progress: Callable[[range], Iterable[int]]) -> Tensor:
        clips = fill_empty_captions(self.clips, self.sampler.network.empty_text(1)[0])
        noise = self.sampler.draw_noise(range(len(clips)))
        conditions = (clips.clip_features, clips.sync_features, clips.text_features)
        return self.sampler.sample_latents(*conditions, noise, progress=progress)

    def write(self, sample: SampleClip, folder: Path, step: int) -> None:
        """Write `folder/CLIP/`: truth (if any) and base (once), step-NNNNNN: .flac, .mp4, spectrograms as .png.

        Raises DataError where the source video cannot be read.
        """
        clip_folder = folder / re.sub(r"[^\w.-]+", "_", sample.name)
        clip_folder.mkdir(parents=True, exist_ok=True)
        step_name = f"step-{step:06d}"
        with atomic_write(clip_folder / f"{step_name}.png") as temporary:
            Image.fromarray(sample.spectrograms).save(temporary, "PNG")
        audio = {step_name if kind == "adapted" else kind: waveform for kind, waveform in sample.waveforms.items()}
        for name, waveform in audio.items():
            if name == step_name or not (clip_folder / f"{name}.flac").exists():
                write_audio(clip_folder / f"{name}.flac", waveform.numpy(), self.sample_rate)
        if self.videos is not None and sample.clip.video:
            self._write_videos(self.videos, sample.clip, audio, clip_folder, step_name)

    def _write_videos(
        self, videos: Path, clip: Clip, audio: dict[str, Tensor], clip_folder: Path, step_name: str
    ) -> None:
        """Write the clip's video with every waveform; the frames are encoded once, then copied."""
        first = next(iter(audio))
        source = clip_folder / f"{first}.mp4"
        if not source.exists():
            write_sample_video(videos, clip, audio[first], self.sample_rate, source)
        for name, waveform in audio.items():
            if name == step_name or not (clip_folder / f"{name}.mp4").exists():
                mux_audio(source, waveform.numpy(), self.sample_rate, clip_folder / f"{name}.mp4")


def build_sample_generator(
    config: TrainConfig,
    features: AnyFeatureSet,
    network: MMAudio,
    device: torch.device,
    print_line: Callable[[str], None],
) -> SampleGenerator | None:
    """`sample_clips` of the clips, evenly over them; None where samples are off or the decoder cannot be loaded."""
    if not config.logging.sample_every:
        return None
    dtype, folder = compute_dtype(device, config.amp), config.weights_folder
    try:
        weights.fetch_files(config.model, ("vae", "vocoder"), folder, config.offline)
        sampler = load_sampler(config.model, folder, device, network, dtype)
    except WeightsError as error:
        print_line(f"pictures:   none, the decoder is not here ({error})")
        return None
    count = min(config.logging.sample_clips, len(features))
    rows = [round(number * (len(features) - 1) / max(1, count - 1)) for number in range(count)]
    clips = features.subset(rows).load()
    return SampleGenerator(sampler, clips, find_video_folder(config, clips, print_line))


def find_video_folder(config: TrainConfig, clips: FeatureSet, print_line: Callable[[str], None]) -> Path | None:
    """The folder of source videos where it holds those of all `clips`; no video outside of it is opened."""
    if config.video_root is None:
        return None
    root = Path(config.video_root)
    if outside := videos_outside(clips.clips):
        print_line(f"videos:     none, {outside[0]} is outside of {root} (video_root)")
        return None
    missing = [name for name in clips.videos if not (root / name).is_file()]
    if missing:
        print_line(f"videos:     none, {root / missing[0]} is not there (video_root)")
    return None if missing else root


def write_sample_video(videos: Path, clip: Clip, waveform: Tensor, sample_rate: int, path: Path) -> None:
    """Write the clip's frames, small, with a waveform (samples,); DataError where they cannot be read."""
    grid = FrameGrid(FPS, round((clip.end - clip.start) * FPS), _shrink)
    window = next(read_frame_windows(probe(videos / clip.video, clip.streams), [clip.start], [grid]))
    frames = (frame.permute(1, 2, 0).contiguous().numpy() for frame in window.frames[0])
    write_video(path, frames, FPS, waveform.numpy(), sample_rate)


def _shrink(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) with no side above MAX_SIDE, both even."""
    scale = min(1.0, MAX_SIDE / max(frames.shape[-2:]))
    size = [max(2, 2 * round(side * scale / 2)) for side in frames.shape[-2:]]
    resized = F.interpolate(frames.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def draw_mels(mels: list[Tensor]) -> npt.NDArray[np.uint8]:
    """Spectrograms (mels, frames) one above the other on the first one's scale, low frequencies at the bottom."""
    from matplotlib import colormaps  # slow to import

    low, high = float(mels[0].min()), float(mels[0].max())
    images = []
    for mel in mels:
        scaled = ((mel.float().cpu() - low) / max(high - low, 1e-6)).clamp(0, 1).flip(0)
        images += [colormaps["magma"](scaled.numpy())[..., :3], np.ones((GAP, mel.shape[1], 3))]
    return (np.concatenate(images[:-1]) * 255).astype(np.uint8)
