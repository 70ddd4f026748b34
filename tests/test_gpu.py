"""What a GPU computes is what a CPU does: features, latents, sound; batches are sized to its memory."""

import pytest
import torch
from helpers import relative_error
from random_model import MODEL, write_random_weights

from mmaudio.features.auto_batch import MAX_BATCH, AutoBatcher
from mmaudio.features.encoders import load_encoders
from mmaudio.generation.sampler import compute_mel, load_sampler
from mmaudio.model.spec import model_spec

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def float32_products():
    """Without TF32, to compare with a CPU."""
    previous = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = previous


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (None, 3e-2)], ids=["float32", "default"])
def test_encoder_features_equal_the_cpus(dtype, tolerance):
    size = model_spec("tiny_16k")
    frames = torch.randint(
        256,
        (16, 3, size.sync.image_size, size.sync.image_size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    pictures = torch.randint(
        256,
        (40, 3, size.clip.image_size, size.clip.image_size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )
    features = []
    for device, device_dtype in (("cpu", torch.float32), ("cuda", dtype)):
        encoders = load_encoders("tiny_16k", None, device, dtype=device_dtype)
        features.append(
            (
                encoders.encode_clip_frames(pictures),
                encoders.encode_sync_frames(frames),
                encoders.encode_texts(["a dog barks", ""]),
            )
        )
    for known, new in zip(*features, strict=True):
        assert new.device.type == "cpu" and relative_error(new.float(), known.float()) < tolerance


def test_latents_and_audio_equal_the_cpus(tmp_path):
    write_random_weights(tmp_path, encoders=False)
    results = []
    for device in ("cpu", "cuda"):
        sampler = load_sampler(MODEL, tmp_path, device)
        sampler.network.set_duration(1.0)
        spec, size = sampler.network.spec, sampler.network.lengths
        features = (
            random(2, size.clip_tokens, spec.clip_dim),
            random(2, size.sync_tokens, spec.sync_dim),
            random(2, spec.text_tokens, spec.text_dim),
        )
        latents = sampler.sample_latents(*features, sampler.draw_noise([1, 2]), num_steps=4)
        mel = sampler.decode_mel(latents)
        results.append((latents.cpu(), mel.cpu(), compute_mel(random(2, 16_000).to(device), sampler.spec).cpu()))
        sound = sampler.decode(latents)
        assert sound.isfinite().all() and sound.shape[0] == 2
    for known, new in zip(*results, strict=True):
        assert relative_error(new, known) < 1e-3


def test_a_batch_is_sized_by_the_memory_of_a_row():
    device = torch.device("cuda")
    free, _ = torch.cuda.mem_get_info(device)
    width = int(free / 40)  # bytes of a row: some 28 fit

    def encode(rows):
        held = torch.empty(len(rows), width, dtype=torch.uint8, device=device)
        return held[:, :1].float() + rows.to(device)

    batches, rows = AutoBatcher(device), torch.zeros(100, 1)
    assert batches.run(encode, rows).shape == (100, 1)
    assert 4 < batches.batch_size < MAX_BATCH


def test_a_batch_that_does_not_fit_is_halved():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)

    def encode(rows):
        torch.empty(len(rows), int(free / 8), dtype=torch.uint8, device=device)
        return rows.to(device)

    batches = AutoBatcher(device)
    batches.batch_size = 64
    assert batches.run(encode, torch.zeros(64, 1)).shape == (64, 1)
    assert batches.batch_size in (4, 8)
