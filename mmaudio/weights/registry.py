"""The released files: what each part of a base model is called, where it comes from, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import constants

from mmaudio.model.spec import model_spec

PARTS = ("network", "vae", "vocoder", "synchformer", "clip")
"""The parts of a base model, each a file of its own; an embedded model's vocoder may need none."""
RELEASE = "https://github.com/hkchengrex/MMAudio/releases/download/v0.1"


@dataclass(frozen=True)
class WeightsFile:
    """One released file."""

    names: tuple[str, ...]
    """Its names on disk, the usual one first."""
    source: str
    """Where it comes from, for the user: the address of the file itself, or of its repository on the hub."""
    size: int = 0
    """Bytes, to three digits at least; 0 where the file is never fetched."""
    md5: str | None = None
    """None where the hub knows the checksum, or nobody."""
    key: str | None = None
    """The entry of the file that holds the state dict, where it is not the whole file."""
    repository: str | None = None
    """On the Hugging Face hub, whose own cache then keeps it."""

    @property
    def name(self) -> str:
        """What it is usually called."""
        return self.names[0]


_NETWORKS = {
    "small_16k": (629, "af93cde404179f58e3919ac085b8033b"),
    "small_44k": (630, "babd74c884783d13701ea2820a5f5b6d"),
    "medium_44k": (2490, "5a56b6665e45a1e65ada534defa903d0"),
    "large_44k": (4120, "fed96c325a6785b85ce75ae1aafd2673"),
    "large_44k_v2": (4120, "01ad4464f049b2d7efdaa4c1a59b8dfe"),
}
"""Megabytes and MD5."""
_ON_GITHUB = {
    ("vae", "16k"): ("v1-16.pth", 687, "69f56803f59a549a1a507c93859fd4d7", None),
    ("vae", "44k"): ("v1-44.pth", 1220, "fab020275fa44c6589820ce025191600", None),
    ("vocoder", "16k"): ("best_netG.pt", 449, "eeaf372a38a9c31c362120aba2dde292", "generator"),
    ("synchformer", ""): ("synchformer_state_dict.pth", 950, "5b2f5594b0730f70e41e549b7c94390c", None),
}
_ON_THE_HUB = {
    ("vocoder", "44k"): (("bigvgan_generator.pt",), 489, "nvidia/bigvgan_v2_44khz_128band_512x", "generator"),
    ("clip", ""): (
        ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
        3947,
        "apple/DFN5B-CLIP-ViT-H-14-384",
        None,
    ),
}

CNN14 = WeightsFile(
    ("Cnn14_mAP=0.431.pth",),
    "https://zenodo.org/records/3987831/files/Cnn14_mAP%3D0.431.pth?download=1",
    327 * 10**6,
    key="model",
)
"""PANNs' tagger, for evaluation: no part of any model."""


def weights_file(model: str, part: str) -> WeightsFile | None:
    """What `part` of `model` is called; None where it needs no weights. ConfigError for an unknown model."""
    spec = model_spec(model)
    if part == "vocoder" and spec.codec.vocoder == "griffin_lim":
        return None
    if spec.embedded:
        return WeightsFile((f"{part}.safetensors",), "the package itself: install it again")
    if part == "network":
        name, (megabytes, md5) = f"mmaudio_{model}.pth", _NETWORKS[model]
        address = f"{constants.ENDPOINT}/hkchengrex/MMAudio/resolve/main/weights/{name}"
        return WeightsFile((name,), address, megabytes * 10**6, md5)
    kind = (part, spec.codec.name if part in ("vae", "vocoder") else "")
    if kind in _ON_GITHUB:
        name, megabytes, md5, key = _ON_GITHUB[kind]
        return WeightsFile((name,), f"{RELEASE}/{name}", megabytes * 10**6, md5, key)
    names, megabytes, repository, key = _ON_THE_HUB[kind]
    address = f"{constants.ENDPOINT}/{repository}"
    return WeightsFile(names, address, megabytes * 10**6, key=key, repository=repository)
