"""An adapter's settings, in peft's words where peft has one.

LoRA: arXiv 2106.09685. rsLoRA: 2312.03732. DoRA: 2402.09353. PiSSA: 2404.02948.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmaudio.errors import ConfigError

DEFAULT_TARGETS = (
    "joint_blocks[*].latent_block.attn.qkv",
    "joint_blocks[*].latent_block.ffn",
    "joint_blocks[*].clip_block.attn.qkv",
    "joint_blocks[*].clip_block.ffn",
    "joint_blocks[*].text_block.attn.qkv",
    "joint_blocks[*].text_block.ffn",
    "fused_blocks[*].attn.qkv",
    "fused_blocks[*].ffn",
)
"""Attention inputs and MLPs of all blocks."""
BIASES = ("none", "all", "lora_only")
STARTS = ("kaiming", "pissa")
"""Values of `init_lora_weights`."""


@dataclass
class Phase:
    """A part of progressive training: so many steps with this rank."""

    rank: int = 64
    """As lora.rank; higher than the phase's before."""
    max_steps: int = 1000
    """Optimizer steps of this phase alone."""
    alpha: float | None = None
    """null: as much per rank as lora.alpha / lora.rank says."""


@dataclass
class LoRAConfig:
    """An adapter's settings; raises ConfigError for values that make no sense."""

    rank: int = 64
    """Width of the low-rank bottleneck; more where the training loss stays high, less where clips are learned by
    heart."""
    alpha: float = 128.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.1
    """Share of the branch's inputs that are dropped in training; more where the validation loss rises early."""
    target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """Patterns over dotted module names; see `mmaudio.lora.targets`."""
    max_steps: int | None = None
    """Optimizer steps with these settings; None: the trainer's. See `progressive`."""
    extra_targets: list[str] = field(default_factory=list)
    """Further patterns: linear1 (after attention) where rank alone does not help; *_input_proj (of latents, video,
    text) where videos look or sound unlike what the base model knows: conditions are then projected anew every step."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks by pattern, where some layers need more than others; the first that matches counts. On the command line
    `lora.rank_pattern={attn.qkv:128,fused_blocks.*.ffn:16}`."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """The same for alpha; where a layer with a rank of its own shall be scaled like the others."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank): where ranks of 64 and more do not learn faster than 16."""
    use_dora: bool = False
    """DoRA, linears only: trains the length of every row of weights apart from its direction; where a low rank (up to
    16) falls short of a high one. Slower steps; merged it costs nothing."""
    init_lora_weights: str = "kaiming"
    """pissa, linears only: starts from the largest singular values of the base's weights; where few steps have to do.
    Without dropout and weight decay, which would pull at the base's own weights."""
    bias: str = "none"
    """all: also train every bias of the network, lora_only: those of adapted layers; where the videos' level or timbre
    is off throughout."""
    phases: list[Phase] = field(default_factory=list)
    """Ranks that grow in the course of training, where it is not known which rank is enough:
    [{rank: 32, max_steps: 1000}, {rank: 64, max_steps: 2000}]. rank and alpha are then the first phase's, and the
    trainer's max_steps does not count."""
    enabled: bool = True
    """false: train every weight of the network, to compare; try a tenth of the learning rate. Files and memory are
    those of whole networks."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: the rank is at least 1; 16 to 128 suits small sets")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha={self.alpha}: the scale is a positive number; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: a share from 0 up to, not including, 1; 0.1 is usual")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty: name at least one, such as fused_blocks[*].attn.qkv")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"lora.max_steps={self.max_steps}: at least 1, or nothing for the trainer's own number")
        self._check_patterns()
        self._check_kind()
        self._settle_phases()

    def _check_patterns(self) -> None:
        for pattern, rank in self.rank_pattern.items():
            if rank < 1:
                raise ConfigError(f"lora.rank_pattern: {pattern}: {rank}: the rank is at least 1")
        for pattern, alpha in self.alpha_pattern.items():
            if not 0 < alpha < math.inf:
                raise ConfigError(f"lora.alpha_pattern: {pattern}: {alpha}: the scale is a positive number")

    def _check_kind(self) -> None:
        for name, known in (("bias", BIASES), ("init_lora_weights", STARTS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"lora.{name}={getattr(self, name)!r}: unknown; it is {', '.join(known)}")
        if self.init_lora_weights == "pissa" and self.dropout:
            raise ConfigError(
                f"lora.init_lora_weights=pissa with lora.dropout={self.dropout:g}: PiSSA's A and B hold the base's own "
                "weights, which dropout would drop; set lora.dropout=0 (preset=pissa)"
            )
        if not self.enabled:
            plain = LoRAConfig()
            names = ("extra_targets", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights")
            for name in (*names, "bias", "phases"):
                if getattr(self, name) != getattr(plain, name):
                    raise ConfigError(f"lora.enabled=false trains every weight: lora.{name} means nothing there")

    def _settle_phases(self) -> None:
        """Takes rank and alpha from the first phase, and fills in the phases' alphas."""
        if not self.phases:
            return
        scale, settled = self.alpha / self.rank, []
        for number, phase in enumerate(self.phases, 1):
            where = f"lora.phases: phase {number}"
            if phase.max_steps < 1 or phase.rank < 1:
                raise ConfigError(f"{where}: rank={phase.rank}, max_steps={phase.max_steps}: both are at least 1")
            alpha = scale * phase.rank if phase.alpha is None else phase.alpha
            if not 0 < alpha < math.inf:
                raise ConfigError(f"{where}: alpha={alpha}: the scale is a positive number")
            settled.append(dataclasses.replace(phase, alpha=alpha))
        self.phases = settled
        ranks = [phase.rank for phase in self.phases]
        if ranks != sorted(ranks):
            raise ConfigError(
                f"lora.phases: ranks {', '.join(map(str, ranks))}: a rank grows or stays; sort the phases"
            )
        self.rank, self.alpha = ranks[0], self.phases[0].alpha or self.alpha

    @property
    def steps(self) -> int | None:
        """Optimizer steps of all phases, else `max_steps`."""
        return sum(phase.max_steps for phase in self.phases) or self.max_steps

    @property
    def kind(self) -> str:
        """What it is called: LoRA, rsLoRA, DoRA, PiSSA, both, or full fine-tuning."""
        if not self.enabled:
            return "full fine-tuning"
        start = "PiSSA" if self.init_lora_weights == "pissa" else ""
        names = [start, "DoRA" if self.use_dora else "", "rsLoRA" if self.use_rslora else ""]
        return " + ".join(name for name in names if name) or "LoRA"

    def phase_at(self, step: int) -> int:
        """Index of the phase that the optimizer step number `step` (from 0) belongs to; 0 where there are none."""
        ends = 0
        for number, phase in enumerate(self.phases):
            ends += phase.max_steps
            if step < ends:
                return number
        return max(0, len(self.phases) - 1)

    def in_phase(self, number: int) -> LoRAConfig:
        """The settings of one phase alone, without the others; the same settings where there are no phases."""
        if not self.phases:
            return self
        phase = self.phases[number]
        alpha = self.alpha if phase.alpha is None else phase.alpha
        return dataclasses.replace(self, rank=phase.rank, alpha=alpha, max_steps=phase.max_steps, phases=[])


def progressive(configs: Sequence[LoRAConfig]) -> LoRAConfig:
    """Settings that train with each of `configs` in turn, for its max_steps: the same adapter, its rank growing.

    TrainConfig(lora=progressive([LoRAConfig(rank=32, max_steps=1000), LoRAConfig(rank=64, max_steps=2000)]))

    Raises ConfigError where one has no max_steps, or they differ in more than rank, alpha and max_steps.
    """
    if not configs:
        raise ConfigError("progressive: no phases; give at least one LoRAConfig with max_steps")
    first, phases = configs[0], []
    for number, config in enumerate(configs, 1):
        if config.max_steps is None:
            raise ConfigError(f"progressive: phase {number} has no max_steps, the steps that it takes")
        alike = dataclasses.replace(config, rank=first.rank, alpha=first.alpha, max_steps=first.max_steps)
        if config.phases or alike != first:
            raise ConfigError(f"progressive: phase {number} differs from the first in more than rank and alpha")
        phases.append(Phase(config.rank, config.max_steps, config.alpha))
    return dataclasses.replace(first, max_steps=None, phases=phases)
