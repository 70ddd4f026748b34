"""How far a generated sound's spectrum is from the original's. Pure functions; no files, no models.

B batch, M mel bands, T mel frames. Mel values are logarithms in the codec's own base (`CodecSpec.log_base`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOUD = -2.2
"""Common logarithm of the mel value above which a cell counts as loud. It lies 0.4 above the mel value that white noise
of standard deviation 0.002 (54 dB below full scale) has, at both released rates: noise floors stay below."""


def loud_threshold(log_base: float) -> float:
    """`LOUD` in logarithms of `log_base`: -2.2 for base 10, -5.07 for the natural logarithm."""
    return LOUD * math.log(10) / math.log(log_base)


def mel_l1(mel: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference over all cells, in the codec's own logarithm; (B, M, T) twice -> (B,). Lower is better.

    It says how close the spectrum is over time; most cells of quiet recordings are noise floor, which dominates it.
    """
    return (mel - reference).abs().mean((1, 2))


def mel_l1_loud(mel: Tensor, reference: Tensor, log_base: float) -> Tensor:
    """`mel_l1` over the cells whose reference is above `LOUD`; (B,), NaN for a clip that has none. Lower is better.

    For natural-log codecs the threshold is the same mel value (`loud_threshold`) and the distance stays in natural
    logarithms. Sound where the original is quiet does not count here: `mel_l1` has it.
    """
    loud = reference > loud_threshold(log_base)
    total = ((mel - reference).abs() * loud).sum((1, 2))
    return total / loud.sum((1, 2)).to(total.dtype).where(loud.any(2).any(1), torch.nan)
