"""Inference of one network on a set of clips: velocity losses and sampled latents.

All noise is drawn from a seed and the clip's id, so that neither the batch size nor the other clips matter, and the
base and the adapted model get the same noise.

N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.cli import explain_out_of_memory
from mmaudio.data.empty_captions import fill_empty_captions
from mmaudio.data.feature_set import FeatureSet
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.features.auto_batch import AutoBatcher
from mmaudio.generation.sampler import Sampler
from mmaudio.model.flow_matching import logit_normal_quantiles, sample_posterior, velocity_loss
from mmaudio.utils.core_threads import CoreThreads
from mmaudio.utils.progress import Progress

SMALLER_BATCH = "take a smaller batch, --batch_size 4"
NUM_TIMES = 8
"""Times at which the velocity loss is computed."""
CPU_BATCH = 6
"""Clips of a batch on a CPU at most, where each core has one: with small ones threads wait for Python's lock."""
MAX_BATCH = 64
"""Clips of a batch on a GPU, where memory allows: larger ones are not faster."""
Compute = Callable[[Sequence[int]], Tensor]
"""compute(rows) -> one row each."""


def clip_seed(seed: int, clip_id: str, purpose: str) -> int:
    """Derive a seed for one clip and one purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}/{purpose}".encode()).digest()[:8], "big")


@explain_out_of_memory(SMALLER_BATCH)
def velocity_losses(sampler: Sampler, features: FeatureSet, sampling: SamplingConfig, label: str) -> list[float]:
    """Compute the training loss of each clip with all conditions present, the mean over `logit_normal_quantiles`.

    `label` names the progress bar.
    """
    features = fill_empty_captions(features, sampler.network.empty_text(1)[0])
    with CoreThreads(sampler.device) as threads, Progress(len(features) * NUM_TIMES, label) as counter:
        compute = partial(_batch_losses, sampler, features, sampling.seed, counter)
        losses: list[float] = run_batches(sampler, threads, compute, len(features), sampling.batch_size).tolist()
    return losses


@torch.inference_mode()
def _batch_losses(sampler: Sampler, features: FeatureSet, seed: int, counter: Progress, rows: Sequence[int]) -> Tensor:
    """The losses of some clips (rows,)."""
    network, ids = sampler.network, [features.ids[row] for row in rows]
    noise, eps = (sampler.draw_noise([clip_seed(seed, id_, name) for id_ in ids]) for name in ("x0", "x1"))
    batch = features[torch.tensor(rows)].map(lambda tensor: tensor.to(sampler.device))
    latent = network.normalize(sample_posterior(batch.mean, batch.std, eps))
    total = torch.zeros(len(rows), device=sampler.device)
    with sampler.autocast():
        conditions = network.preprocess_conditions(batch.clip_features, batch.sync_features, batch.text_features)
        for time in counter.count(logit_normal_quantiles(NUM_TIMES).tolist(), len(rows)):
            t = torch.full((len(rows),), time, device=sampler.device)
            total += velocity_loss(network, latent, conditions, t, noise)
    return total / NUM_TIMES


@explain_out_of_memory(SMALLER_BATCH)
def sample_latents(sampler: Sampler, features: FeatureSet, sampling: SamplingConfig, label: str) -> Tensor:
    """Sample latents of every clip on the codec's scale, (clips, samples, N, C) on the CPU.

    `label` names the progress bar.
    """
    features = fill_empty_captions(features, sampler.network.empty_text(1)[0])
    jobs = [(row, sample) for row in range(len(features)) for sample in range(sampling.samples)]
    num_steps = sampling.num_steps or sampler.spec.num_steps

    def compute(indices: Sequence[int]) -> Tensor:
        """Latents (B, N, C) of the jobs at `indices`."""
        batch = features[torch.tensor([jobs[index][0] for index in indices])]
        names = ((features.ids[row], f"take {sample}") for row, sample in (jobs[index] for index in indices))
        noise = sampler.draw_noise([clip_seed(sampling.seed, *name) for name in names])
        conditions = (batch.clip_features, batch.sync_features, batch.text_features)
        count = partial(counter.count, weight=len(indices))
        return sampler.sample_latents(*conditions, noise, num_steps, sampling.guidance_scale, progress=count)

    total = len(jobs) * num_steps
    with CoreThreads(sampler.device) as threads, Progress(total, f"{label}, solver steps of clips") as counter:
        latents = run_batches(sampler, threads, compute, len(jobs), sampling.batch_size)
    return rearrange(latents, "(clips samples) n c -> clips samples n c", samples=sampling.samples)


def run_batches(sampler: Sampler, threads: CoreThreads, compute: Compute, count: int, batch_size: int | None) -> Tensor:
    """Compute rows 0 to `count` in batches of at most `batch_size`; the outputs (count, ...) on the CPU.

    On a CPU each core has as many batches as the others, of the same size but for one row; elsewhere batches follow
    each other, on a GPU as large as its memory allows.
    """
    with sampler.autocast():  # casts the weights, which all threads share; those of a thread's own block are cast then
        if sampler.device.type != "cpu":
            batcher = AutoBatcher(sampler.device, batch_size or MAX_BATCH)
            return batcher.run(lambda rows: compute(rows.tolist()), torch.arange(count))
        rounds = math.ceil(count / (threads.count * (batch_size or CPU_BATCH)))
        batches = torch.arange(count).tensor_split(min(count, rounds * threads.count))
        return torch.cat(list(threads.run(partial(compute, batch.tolist()) for batch in batches)))
