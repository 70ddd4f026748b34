"""Training written plainly: peft's layers on PyTorch's modules, features projected anew at every step.

The benchmark compares the trainer with it, in time and in value. B clips.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

from benchmarks.baseline_network import PlainNetwork
from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import Features
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.optimizers import BETAS
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.flow_matching import logit_normal_times
from mmaudio.model.networks import MMAudio

TARGETS = r".*_blocks\..*\.(attn\.qkv|ffn\.w[123])"


class PlainTraining:
    """Training of the same adapter (or of all weights) on the same clips as the trainer's, with AdamW."""

    def __init__(
        self, network: MMAudio, features: Features, config: TrainConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.features = features.map(lambda tensor: tensor.to(device))
        self.config, self.device, self.dtype = config, device, dtype
        self.network = PlainNetwork(network.spec, config.gradient_checkpointing).to(device)
        self.network.load_state_dict(network.state_dict())
        self.model: nn.Module = add_adapter(self.network, config.lora) if config.lora.enabled else self.network
        self.trainable_parameters = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable_parameters, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay
        )

    def load_adapter(self, state: dict[str, Tensor]) -> None:
        """Load the trainer's adapter, in PEFT's keys."""
        set_peft_model_state_dict(self.model, state)

    def draw_batch(self) -> Draws:
        """The random numbers of a step, from torch's default generator."""
        batch_size, shape = self.config.effective_batch_size, self.features.mean.shape[1:]
        no_video, no_text = torch.rand(2, batch_size) < self.config.drop_conditions
        index, eps, noise = torch.randint(len(self.features.mean), (batch_size,)), *torch.randn(2, batch_size, *shape)
        return Draws(index, eps, noise, logit_normal_times(batch_size), no_video, no_text, 0).to(self.device)

    def losses(self, draws: Draws) -> Tensor:
        """The flow-matching loss of every clip (B,)."""
        network, rows = self.network, self.features.select(draws.index)
        data = (rows.mean + rows.std * draws.eps - network.latent_mean) / network.latent_std
        t = draws.t[:, None, None]
        no_video, no_text = draws.no_video[:, None, None], draws.no_text[:, None, None]
        clip_f = torch.where(no_video, network.empty_clip_feat, rows.clip_features)
        sync_f = torch.where(no_video, network.empty_sync_feat, rows.sync_features)
        text_f = torch.where(no_text, network.empty_string_feat, rows.text_features)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            velocity: Tensor = network((1 - t) * draws.noise + t * data, draws.t, clip_f, sync_f, text_f)
        return (velocity.float() - (data - draws.noise)).square().mean((1, 2))

    def step(self) -> None:
        """One optimizer step."""
        self.model.train()
        torch.autograd.backward(self.losses(self.draw_batch()).mean())
        nn.utils.clip_grad_norm_(self.trainable_parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def add_adapter(network: PlainNetwork, lora: LoRAConfig) -> nn.Module:
    """The network with peft's adapter on the default targets."""
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=TARGETS)
    model: nn.Module = get_peft_model(network, settings)
    return model
