"""Registry of the released weights files: names, addresses, sizes and checksums of every model's components."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import constants

from mmaudio.model.spec import model_spec

COMPONENTS = ("network", "vae", "vocoder", "synchformer", "clip")
"""The components of a base model, each in a file of its own; a bundled model's vocoder may need none."""
BASE_REPOSITORY = "hkchengrex/MMAudio"
"""The released models' repository on the hub."""
RELEASE = "https://github.com/hkchengrex/MMAudio/releases/download/v0.1"


@dataclass(frozen=True)
class WeightsFile:
    """One released file."""

    names: tuple[str, ...]
    """File names on disk, the usual one first."""
    source: str
    """Address of the file, or of its repository on the hub."""
    size: int = 0
    """Bytes, to three digits at least; 0 for a file that is never fetched."""
    md5: str | None = None
    """None where the hub has the checksum, or none is published."""
    key: str | None = None
    """Entry of the file that holds the state dict; None: the file is the state dict."""
    repository: str | None = None
    """Repository on the Hugging Face hub, for files that lie in the hub's cache."""

    @property
    def name(self) -> str:
        """The usual file name."""
        return self.names[0]


def _network(model: str, megabytes: int, md5: str) -> WeightsFile:
    name = f"mmaudio_{model}.pth"
    address = f"{constants.ENDPOINT}/{BASE_REPOSITORY}/resolve/main/weights/{name}"
    return WeightsFile((name,), address, megabytes * 10**6, md5)


def _github(name: str, megabytes: int, md5: str, key: str | None = None) -> WeightsFile:
    return WeightsFile((name,), f"{RELEASE}/{name}", megabytes * 10**6, md5, key)


def _hub(names: tuple[str, ...], megabytes: int, repository: str, key: str | None = None) -> WeightsFile:
    return WeightsFile(names, f"{constants.ENDPOINT}/{repository}", megabytes * 10**6, None, key, repository)


RELEASED_FILES = {
    ("network", "small_16k"): _network("small_16k", 629, "af93cde404179f58e3919ac085b8033b"),
    ("network", "small_44k"): _network("small_44k", 630, "babd74c884783d13701ea2820a5f5b6d"),
    ("network", "medium_44k"): _network("medium_44k", 2490, "5a56b6665e45a1e65ada534defa903d0"),
    ("network", "large_44k"): _network("large_44k", 4120, "fed96c325a6785b85ce75ae1aafd2673"),
    ("network", "large_44k_v2"): _network("large_44k_v2", 4120, "01ad4464f049b2d7efdaa4c1a59b8dfe"),
    ("vae", "16k"): _github("v1-16.pth", 687, "69f56803f59a549a1a507c93859fd4d7"),
    ("vae", "44k"): _github("v1-44.pth", 1220, "fab020275fa44c6589820ce025191600"),
    ("vocoder", "16k"): _github("best_netG.pt", 449, "eeaf372a38a9c31c362120aba2dde292", "generator"),
    ("vocoder", "44k"): _hub(("bigvgan_generator.pt",), 489, "nvidia/bigvgan_v2_44khz_128band_512x", "generator"),
    ("synchformer", ""): _github("synchformer_state_dict.pth", 950, "5b2f5594b0730f70e41e549b7c94390c"),
    ("clip", ""): _hub(
        ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), 3947, "apple/DFN5B-CLIP-ViT-H-14-384"
    ),
}
"""By component, and by what selects the file: the model (network), the codec (vae, vocoder) or nothing."""

CNN14 = WeightsFile(
    ("Cnn14_16k_mAP=0.438.pth",),
    "https://zenodo.org/records/3987831/files/Cnn14_16k_mAP%3D0.438.pth?download=1",
    324 * 10**6,
    key="model",
)
"""PANNs' audio tagger, for evaluation; not a component of a model."""


def weights_file(model: str, component: str) -> WeightsFile | None:
    """The file of `component` of `model`; None where it needs no weights. ConfigError for an unknown model."""
    spec = model_spec(model)
    if component == "vocoder" and spec.codec.vocoder == "griffin_lim":
        return None
    if spec.bundled:
        return WeightsFile((f"{component}.safetensors",), "the package itself: install it again")
    variants = {"network": model, "vae": spec.codec.name, "vocoder": spec.codec.name}
    return RELEASED_FILES[component, variants.get(component, "")]
