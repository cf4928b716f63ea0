"""Models from the Hugging Face Hub: what there is, what lies in the Hub's cache, and downloads on the user's word only."""

from dataclasses import dataclass
from pathlib import Path

from .infer import TEXT_SUBFOLDER


@dataclass(frozen=True)
class Release:
    """A model on the Hub. gigabytes: of everything that is downloaded."""

    variant: str
    repository: str
    revision: str
    sha256: str  # of model.safetensors
    gigabytes: float
    gated: bool


def _release(variant: str, revision: str, sha256: str, gigabytes: float, gated: bool = False) -> Release:
    name = variant if variant.startswith("SAME") else f"stable-audio-3-{variant}"
    return Release(variant, f"stabilityai/{name}", revision, sha256, gigabytes, gated)


RELEASES = {
    release.variant: release
    for release in (
        _release("small-music", "0fef1392cd842149a2b6d445e181c97608faac06",
                 "da85866b11b01d0694d990785f6abbd79c8064df1b0e6f8aea52935e0ef84b64", 2.27, gated=True),
        _release("small-sfx", "ae12755283df9d62ca39a9b050a39a0b607b8c20",
                 "ed9cf1b6172f1a8c2921a9560c21109ff3239524563ced9dce6dcdef41e2f515", 2.27, gated=True),
        _release("medium", "27b5a21b791b1b033d193a9e1e3ce78493f102f9",
                 "48d9c65e290e7bcd5194e0633bfc2424a59ee9683f5c2d58762d997b7d8ce0b5", 9.22, gated=True),
        _release("small-music-base", "eab5ceee5ad9c1ed38800aff30a8e49d1161c539",
                 "79691fac2a08a99a229b98963f8377ddc78c16f5c63f7e3a022375c311093ab4", 2.27),
        _release("small-sfx-base", "cc5ddb990e30daa68336ac61c140c37c7033ab7c",
                 "0c7cddb22cd7bf5e8169c6731a9eb7690c27ef5b53e8a4f9b4b2aaf8afcdaea2", 2.27),
        _release("medium-base", "b32993f73c3bdc3864043a72d8032606bba737c8",
                 "c443fcc4d491475064cd0ff3eb92459b1e5f5060e86d96d016f048e528e24195", 9.22),
        _release("SAME-S", "fbeb3dcf53a326e5682f38e22e7f740202d44232",
                 "c19698ce3a0b462acb967ee495e9eb7945221f236968c50206cce8cf22b3d305", 0.43),
        _release("SAME-L", "41acf79dd242877d6499a1108ca5dba5d5eecfc5",
                 "8cf93d5345c559307fc429bde896f594516fd6a1a23014c2f6055f78d8e13378", 3.41),
    )
}  # fmt: skip


def cached_text_encoder(width: int) -> Path | None:
    """A T5Gemma folder of that width in the Hub's local cache; nothing is asked of the network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    from .errors import SA3Error
    from .text_encoder import encoder_config

    for release in RELEASES.values():
        for revision in (None, release.revision):
            found = try_to_load_from_cache(release.repository, f"{TEXT_SUBFOLDER}/config.json", revision=revision)
            if not isinstance(found, str):
                continue
            folder = Path(found).parent
            weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
            if not weights or not (folder / "tokenizer.json").is_file():
                continue
            try:
                if encoder_config(folder).encoder.hidden_size == width:
                    return folder
            except SA3Error:
                continue
    return None
