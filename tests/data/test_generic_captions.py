"""Generic captions: distinct, and those that an evaluation measures are neither trained on nor of a measured clip."""

import pytest

from mmaudio.data.generic_captions import held_back_captions, read_captions, training_captions
from mmaudio.weights.store import ASSETS


@pytest.mark.parametrize(("model", "count"), [("tiny_16k", 110), ("small_16k", 50), ("large_44k_v2", 50)])
def test_captions_are_distinct_and_the_released_models_have_the_same(model, count):
    captions = read_captions(model)
    assert len(captions) == len(set(captions)) == count and all(
        caption == caption.strip() != "" for caption in captions
    )


@pytest.mark.parametrize(("model", "count"), [("tiny_16k", 22), ("small_16k", 10)])
def test_no_measured_caption_is_trained_on_and_none_is_lost(model, count):
    training, measured = training_captions(model), held_back_captions(model)
    assert len(measured) == count and not set(training) & set(measured)
    assert sorted(training + measured) == sorted(read_captions(model))


def test_no_measured_clip_of_the_base_s_domain_has_one_of_the_captions():
    measured = {path.read_text().strip() for path in (ASSETS / "tiny_16k" / "general").glob("*.txt")}
    assert measured and not measured & set(read_captions("tiny_16k"))
