"""Inference of one network on a set of clips: velocity losses and sampled latents.

All noise is drawn from a seed and the clip's id, so that neither the batch size nor the other clips matter, and the
base and the adapted model get the same noise.

N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.cli import explain_out_of_memory
from mmaudio.data.empty_captions import fill_empty_captions
from mmaudio.data.feature_set import FeatureSet
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.generation.sampler import Sampler
from mmaudio.model.flow_matching import logit_normal_quantiles, sample_posterior, velocity_loss
from mmaudio.utils.progress import Progress

SMALLER_BATCH = "take a smaller batch, --batch_size 4"
NUM_TIMES = 8
"""Times at which the velocity loss is computed."""


def clip_seed(seed: int, clip_id: str, purpose: str) -> int:
    """Derive a seed for one clip and one purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}/{purpose}".encode()).digest()[:8], "big")


@explain_out_of_memory(SMALLER_BATCH)
@torch.inference_mode()
def velocity_losses(sampler: Sampler, features: FeatureSet, sampling: SamplingConfig, label: str) -> list[float]:
    """Compute the training loss of each clip with all conditions present, the mean over `logit_normal_quantiles`.

    `label` names the progress bar.
    """
    network, losses = sampler.network, []
    features = fill_empty_captions(features, network.empty_text(1)[0])
    batches = _batches(len(features), sampling.batch_size)
    with Progress(len(batches) * NUM_TIMES, label) as counter:
        for rows in batches:
            ids = [features.ids[row] for row in rows]
            seeds = ([clip_seed(sampling.seed, id_, name) for id_ in ids] for name in ("x0", "x1"))
            noise, eps = map(sampler.draw_noise, seeds)
            batch = features[torch.tensor(rows)].map(lambda tensor: tensor.to(sampler.device))
            latent = network.normalize(sample_posterior(batch.mean, batch.std, eps))
            total = torch.zeros(len(rows), device=sampler.device)
            with sampler.autocast():
                inputs = (batch.clip_features, batch.sync_features, batch.text_features)
                conditions = network.preprocess_conditions(*inputs)
                for time in counter.count(logit_normal_quantiles(NUM_TIMES).tolist()):
                    t = torch.full((len(rows),), time, device=sampler.device)
                    total += velocity_loss(network, latent, conditions, t, noise)
            losses += (total / NUM_TIMES).tolist()
    return losses


@explain_out_of_memory(SMALLER_BATCH)
def sample_latents(sampler: Sampler, features: FeatureSet, sampling: SamplingConfig, label: str) -> Tensor:
    """Sample latents of every clip on the codec's scale, (clips, samples, N, C) on the CPU.

    `label` names the progress bar.
    """
    features = fill_empty_captions(features, sampler.network.empty_text(1)[0])
    jobs = [(row, sample) for row in range(len(features)) for sample in range(sampling.samples)]
    latents = []
    batches, num_steps = _batches(len(jobs), sampling.batch_size), sampling.num_steps or sampler.spec.num_steps
    with Progress(len(batches) * num_steps, f"{label}, solver steps") as counter:
        for indices in batches:
            batch_jobs = [jobs[index] for index in indices]
            batch = features[torch.tensor([row for row, _ in batch_jobs])]
            seeds = [clip_seed(sampling.seed, features.ids[row], f"take {sample}") for row, sample in batch_jobs]
            conditions = (batch.clip_features, batch.sync_features, batch.text_features)
            noise, guidance_scale = sampler.draw_noise(seeds), sampling.guidance_scale
            values = sampler.sample_latents(*conditions, noise, num_steps, guidance_scale, progress=counter.count)
            latents.append(values.cpu())
    return rearrange(torch.cat(latents), "(clips samples) n c -> clips samples n c", samples=sampling.samples)


def _batches(count: int, size: int) -> list[list[int]]:
    """Indices below `count` in batches of `size`."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
