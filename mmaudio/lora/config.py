"""Settings of an adapter, with peft's names where peft has them.

LoRA: arXiv 2106.09685. rsLoRA: 2312.03732. DoRA: 2402.09353. PiSSA: 2404.02948.
"""

from __future__ import annotations

import dataclasses
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
"""The qkv projections and MLPs of all blocks."""
BIASES = ("none", "all", "lora_only")
INITIALIZATIONS = ("kaiming", "pissa")
"""Values of `init_lora_weights`."""
MAX_ALPHA = 1e6
"""Largest alpha; the smallest is its inverse."""


@dataclass
class Phase:
    """One phase of progressive training: a rank for a number of steps."""

    rank: int = 64
    """As lora.rank; at least that of the phase before."""
    max_steps: int = 1000
    """Optimizer steps of this phase alone."""
    alpha: float | None = None
    """null: rank times lora.alpha / lora.rank."""


@dataclass
class LoRAConfig:
    """Settings of an adapter; raises ConfigError for invalid values."""

    rank: int = 64
    """higher rank = more capacity (16, 32, 64, 128)"""
    alpha: float = 128.0
    """scaling by alpha / rank, typically twice the rank"""
    dropout: float = 0.1
    """regularisation, 0.0 to 0.3; higher where the validation loss rises early"""
    target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """the layers to adapt; fewer where a few videos are learned by heart

    Patterns over dotted module names; see `mmaudio.lora.targets`."""
    max_steps: int | None = None
    """steps of these settings, in Python's lists of phases; null: max_steps below

    See `progressive`."""
    extra_targets: list[str] = field(default_factory=list)
    """[linear1]: where rank does not help; ["*_input_proj"]: unusual video or audio

    linear1 follows the attention; *_input_proj projects latents, video and text, and conditions are then projected anew
    in every step."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """{attn.qkv: 128}: where some layers need more rank than others

    Ranks by pattern; the first match counts. On the command line
    `lora.rank_pattern={attn.qkv:128,fused_blocks.*.ffn:16}`."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """{attn.qkv: 256}: where a layer's own rank shall not change its scale"""
    use_rslora: bool = False
    """true: where ranks of 64 and more learn no faster than 16

    Scales by alpha / sqrt(rank)."""
    use_dora: bool = False
    """true (linears only: preset=dora): where a low rank falls short of a high one

    Trains magnitude and direction of every weight row separately. Slower steps; no cost after merging."""
    init_lora_weights: str = "kaiming"
    """pissa (linears only: preset=pissa): where few steps have to do

    Starts from the largest singular values of the base weights; without dropout and weight decay, which would act on
    the base weights."""
    bias: str = "none"
    """all, lora_only: where level or timbre is off throughout

    all: train every bias of the network too; lora_only: those of the adapted layers."""
    phases: list[Phase] = field(default_factory=list)
    """[{rank: 32, max_steps: 1000}, {rank: 64, max_steps: 2000}]: which rank is unknown

    The rank grows from phase to phase. rank and alpha are then those of the first phase, and the trainer's max_steps is
    ignored."""
    enabled: bool = True
    """false: train every weight, to compare; a tenth of the learning rate

    Full fine-tuning. Files and memory are those of whole networks."""

    def __post_init__(self) -> None:
        """Check the values."""
        self._check_types()
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: the rank is at least 1; 16 to 128 suits small sets")
        _check_alpha("lora.alpha=", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: a share from 0 up to, not including, 1; 0.1 is usual")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty: name at least one, such as fused_blocks[*].attn.qkv")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"lora.max_steps={self.max_steps}: at least 1, or nothing for the trainer's own number")
        self._check_patterns()
        self._check_kind()
        self._resolve_phases()

    def _check_types(self) -> None:
        """Check the types, which those of an adapter's file may not be."""
        for name in ("use_rslora", "use_dora", "enabled"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"lora.{name}={getattr(self, name)!r}: true or false is expected")
        values = {f"lora.{name}": getattr(self, name) for name in ("rank", "alpha", "dropout")}
        for name in ("rank_pattern", "alpha_pattern"):
            values |= {f"lora.{name}: {pattern}": value for pattern, value in getattr(self, name).items()}
        for name, value in values.items():
            types, kind = (int, "an integer") if name.startswith("lora.rank") else ((int, float), "a number")
            if not isinstance(value, types) or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: {kind} is expected")

    def _check_patterns(self) -> None:
        for pattern, rank in self.rank_pattern.items():
            if rank < 1:
                raise ConfigError(f"lora.rank_pattern: {pattern}: {rank}: the rank is at least 1")
        for pattern, alpha in self.alpha_pattern.items():
            _check_alpha(f"lora.alpha_pattern: {pattern}: ", alpha)

    def _check_kind(self) -> None:
        for name, known in (("bias", BIASES), ("init_lora_weights", INITIALIZATIONS)):
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
                    raise ConfigError(f"lora.enabled=false trains every weight: lora.{name} has no effect there")

    def _resolve_phases(self) -> None:
        """Set rank and alpha to those of the first phase, and fill in the alphas of the phases."""
        if not self.phases:
            return
        scale, phases = self.alpha / self.rank, []
        for number, phase in enumerate(self.phases, 1):
            label = f"lora.phases: phase {number}"
            if phase.max_steps < 1 or phase.rank < 1:
                raise ConfigError(f"{label}: rank={phase.rank}, max_steps={phase.max_steps}: both are at least 1")
            alpha = scale * phase.rank if phase.alpha is None else phase.alpha
            _check_alpha(f"{label}: alpha=", alpha)
            phases.append(dataclasses.replace(phase, alpha=alpha))
        self.phases = phases
        ranks = [phase.rank for phase in self.phases]
        if ranks != sorted(ranks):
            raise ConfigError(
                f"lora.phases: ranks {', '.join(map(str, ranks))}: a rank grows or stays; sort the phases"
            )
        self.rank, self.alpha = ranks[0], self.phases[0].alpha or self.alpha

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of all phases; without phases, `max_steps`."""
        return sum(phase.max_steps for phase in self.phases) or self.max_steps

    @property
    def method_name(self) -> str:
        """Name of the method: LoRA, rsLoRA, DoRA, PiSSA, a combination, or full fine-tuning."""
        if not self.enabled:
            return "full fine-tuning"
        initialization = "PiSSA" if self.init_lora_weights == "pissa" else ""
        names = [initialization, "DoRA" if self.use_dora else "", "rsLoRA" if self.use_rslora else ""]
        return " + ".join(name for name in names if name) or "LoRA"

    def phase_at(self, step: int) -> int:
        """Index of the phase of the optimizer step `step` (from 0); 0 without phases."""
        end = 0
        for number, phase in enumerate(self.phases):
            end += phase.max_steps
            if step < end:
                return number
        return max(0, len(self.phases) - 1)

    def in_phase(self, number: int) -> LoRAConfig:
        """Settings of a single phase; without phases, the settings themselves."""
        if not self.phases:
            return self
        phase = self.phases[number]
        alpha = self.alpha if phase.alpha is None else phase.alpha
        return dataclasses.replace(self, rank=phase.rank, alpha=alpha, max_steps=phase.max_steps, phases=[])


def _check_alpha(label: str, alpha: float) -> None:
    """Raise ConfigError for a scale that makes the adapter's effect nothing, or no number, in float32."""
    if not 1 / MAX_ALPHA <= alpha <= MAX_ALPHA:
        raise ConfigError(
            f"{label}{alpha}: the scale is a positive number, {1 / MAX_ALPHA:g} to {MAX_ALPHA:g}; twice the rank is "
            "usual"
        )


def progressive(configs: Sequence[LoRAConfig]) -> LoRAConfig:
    """Combine `configs` to settings that train with each in turn for its max_steps: one adapter whose rank grows.

    TrainConfig(lora=progressive([LoRAConfig(rank=32, max_steps=1000), LoRAConfig(rank=64, max_steps=2000)]))

    Raises ConfigError if one has no max_steps, or if they differ in more than rank, alpha and max_steps.
    """
    if not configs:
        raise ConfigError("progressive: no phases; give at least one LoRAConfig with max_steps")
    first, phases = configs[0], []
    for number, config in enumerate(configs, 1):
        if config.max_steps is None:
            raise ConfigError(f"progressive: phase {number} has no max_steps, the steps that it takes")
        comparable = dataclasses.replace(config, rank=first.rank, alpha=first.alpha, max_steps=first.max_steps)
        if config.phases or comparable != first:
            raise ConfigError(f"progressive: phase {number} differs from the first in more than rank and alpha")
        phases.append(Phase(config.rank, config.max_steps, config.alpha))
    return dataclasses.replace(first, max_steps=None, phases=phases)
