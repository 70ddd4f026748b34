"""Clips, windows of videos with a caption and a split, and files and windows that are left out."""

from __future__ import annotations

from dataclasses import dataclass

from mmaudio.media.streams import StreamChoice

DEFAULT_TEST_RATIO = 0.2
"""Share of the videos that is held out for the test."""
MIN_VERDICT_VIDEOS = 3
"""Below this many held-out videos no verdict is given."""
DEFAULT_STRIDE = 4.0
"""Seconds between the starts of two clips of a video."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """One window of one video."""

    id: str
    """Unique in the table, fit for a file name."""
    video: str
    """Path relative to the folder of videos."""
    start: float
    """Seconds from the first frame."""
    end: float
    caption: str
    split: str
    """train, val or test."""
    peak_db: float
    """Peak of the audio in decibels of full scale."""
    rms_db: float
    """RMS of the audio in decibels of full scale."""
    silence: float
    """Share of the window's 50 ms blocks that stay below the silence threshold."""
    lufs: float | None = None
    """Loudness of the mean of all channels (ITU-R BS.1770), at least -70."""
    clipped: float | None = None
    """Share of the samples at full scale in any channel."""
    black: float | None = None
    """Share of the time with a black video."""
    frozen: float | None = None
    """Share of the time in which the video does not change."""
    mismatch: float | None = None
    """Seconds of the video without audio."""
    speech: float | None = None
    """Share of the time with speech, where it was measured."""
    music: float | None = None
    """Share of the time with music or singing, where it was measured."""
    track: int = 0
    """Number of the audio track, from 0 on."""
    breaks: str = ""
    """The rules that it breaks, where it is used all the same."""
    gain_db: float | None = None
    """Decibels by which the audio is amplified, at most to a peak of 0.95; None: to that peak."""
    video_track: int | None = None
    """Number of the picture, from 0 on; None: the only one, or the file's default."""
    channel: int | None = None
    """The only channel of the audio that is used; None: the mean of all."""
    notes: str = ""
    """What was decided about its video: time stamps, tracks and channel."""

    @property
    def streams(self) -> StreamChoice:
        """What of its video is used."""
        return StreamChoice(self.track, self.video_track, self.channel)

    @property
    def seconds(self) -> float:
        """Duration."""
        return round(self.end - self.start, 6)


@dataclass(frozen=True)
class LeftOut:
    """A file, or one window of it, that is not used."""

    video: str
    reason: str
    start: float | None = None
    """Seconds; None for the whole file."""
    end: float | None = None


def clips_of_split(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of `split`; where val or test is empty, as with too few videos, those of the other."""
    selected = [clip for clip in clips if clip.split == split]
    substitute = {"val": "test", "test": "val"}.get(split)
    return selected or [clip for clip in clips if clip.split == substitute]
