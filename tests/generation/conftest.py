"""A small model with random weights, and two videos."""

import pytest
from random_model import MODEL, write_random_weights
from video_files import random_encoders, write_tone_video

from mmaudio.features.encoders import CONDITION_ENCODERS, load_encoders
from mmaudio.generation.sampler import load_sampler


@pytest.fixture(autouse=True, scope="module")
def all_brief(brief_vocoder):
    """Sounds of random weights are noise, however many iterations they take."""


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    random_encoders(folder)
    write_random_weights(folder, encoders=False)
    write_tone_video(folder / "a.mp4", 3)
    write_tone_video(folder / "long.mp4", 15)
    return folder


@pytest.fixture(scope="module")
def sampler(base):
    return load_sampler(MODEL, base)


@pytest.fixture(scope="module")
def encoders(base):
    return load_encoders(MODEL, base, names=CONDITION_ENCODERS)
