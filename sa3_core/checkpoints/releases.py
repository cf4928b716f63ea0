"""The published models: their repositories on the Hugging Face Hub, pinned revisions, hashes, sizes and licence."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import SA3Error

MIRROR = "AEmotionStudio/stable-audio-3-mirrors"  # 16-bit copies, one sub-folder per model
OPTIMIZED = "stabilityai/stable-audio-3-optimized"
OPTIMIZED_REASON = (
    "holds MLX, ONNX, TensorRT and TFLite files for other engines and no PyTorch checkpoint, so there is nothing to load here"
)
SOURCES = ("official", "mirror")
DOWNLOADED = "sa3_download.json"  # written next to a verified download: repository, revision, sha256, variant
TEXT_ENCODER_GB = 1.2
LICENCE = "Stability AI Community License (free below 1 M USD yearly revenue); text encoder under the Gemma Terms of Use"
TERMS = (
    f"{LICENCE}. Above that revenue a licence from Stability AI is needed. LICENSE.md, LICENSE_GEMMA.md and NOTICE are downloaded "
    "with the model."
)


@dataclass(frozen=True)
class Release:
    """A published model."""

    variant: str
    revision: str
    sha256: str  # of model.safetensors
    gigabytes: float  # of model.safetensors
    gated: bool = False

    @property
    def is_autoencoder(self) -> bool:
        return self.variant.startswith("SAME")

    @property
    def folder(self) -> str:
        """The name of the model's folder on disk."""
        return self.variant if self.is_autoencoder else f"stable-audio-3-{self.variant}"

    @property
    def repository(self) -> str:
        return f"stabilityai/{self.folder}"

    def location(self, source: str) -> tuple[str, str | None, str]:
        """(repository, revision, prefix of the file names) at a source. The mirror is not pinned: its revision is None."""
        if source not in SOURCES:
            raise SA3Error(f"The source is '{source}'; expected one of {', '.join(SOURCES)}.")
        return (self.repository, self.revision, "") if source == "official" else (MIRROR, None, f"{self.variant.lower()}/")

    def size(self, source: str = "official") -> float:
        """Approximate gigabytes to download, text encoder included."""
        return self.gigabytes * (1 if source == "official" else 0.5) + (0 if self.is_autoencoder else TEXT_ENCODER_GB)

    def describe(self, folder: Path, source: str = "official") -> str:
        """Repository, size, target folder, access and licence of a download, for the user to agree to."""
        repository, revision, prefix = self.location(source)
        gated = (
            f"Gated: accept the licence once at https://huggingface.co/{repository} and log in (hf auth login, or HF_TOKEN)."
            if self.gated and source == "official"
            else "Not gated: no login needed."
        )
        at = f"revision {revision[:12]}, sha256 {self.sha256[:12]}…" if revision else f"folder {prefix}, 16-bit weights, newest revision"
        return f"{self.variant}: {repository} ({at}), about {self.size(source):.1f} GB, into {folder / self.folder}.\n{gated}\n{TERMS}"


RELEASES = {
    release.variant: release
    for release in (
        Release("small-music", "0fef1392cd842149a2b6d445e181c97608faac06",
                "da85866b11b01d0694d990785f6abbd79c8064df1b0e6f8aea52935e0ef84b64", 2.27, gated=True),
        Release("small-sfx", "ae12755283df9d62ca39a9b050a39a0b607b8c20",
                "ed9cf1b6172f1a8c2921a9560c21109ff3239524563ced9dce6dcdef41e2f515", 2.27, gated=True),
        Release("medium", "27b5a21b791b1b033d193a9e1e3ce78493f102f9",
                "48d9c65e290e7bcd5194e0633bfc2424a59ee9683f5c2d58762d997b7d8ce0b5", 9.22, gated=True),
        Release("small-music-base", "eab5ceee5ad9c1ed38800aff30a8e49d1161c539",
                "79691fac2a08a99a229b98963f8377ddc78c16f5c63f7e3a022375c311093ab4", 2.27),
        Release("small-sfx-base", "cc5ddb990e30daa68336ac61c140c37c7033ab7c",
                "0c7cddb22cd7bf5e8169c6731a9eb7690c27ef5b53e8a4f9b4b2aaf8afcdaea2", 2.27),
        Release("medium-base", "b32993f73c3bdc3864043a72d8032606bba737c8",
                "c443fcc4d491475064cd0ff3eb92459b1e5f5060e86d96d016f048e528e24195", 9.22),
        Release("SAME-S", "fbeb3dcf53a326e5682f38e22e7f740202d44232",
                "c19698ce3a0b462acb967ee495e9eb7945221f236968c50206cce8cf22b3d305", 0.43),
        Release("SAME-L", "41acf79dd242877d6499a1108ca5dba5d5eecfc5",
                "8cf93d5345c559307fc429bde896f594516fd6a1a23014c2f6055f78d8e13378", 3.41),
    )
}  # fmt: skip
VARIANTS = [name for name, release in RELEASES.items() if not release.is_autoencoder]  # in the order in which loaders try them
AUTOENCODERS = [name for name, release in RELEASES.items() if release.is_autoencoder]


def find(variant: str) -> Release:
    """A model by its variant, repository or folder. Raises SA3Error for an unknown or unusable one."""
    if variant.lower().removeprefix("stabilityai/").removeprefix("stable-audio-3-") == "optimized":
        raise SA3Error(f"{OPTIMIZED} {OPTIMIZED_REASON}. Choose one of {', '.join(RELEASES)}.")
    for release in RELEASES.values():
        if variant.lower() in (release.variant.lower(), release.repository.lower(), release.folder.lower()):
            return release
    raise SA3Error(f"'{variant}' is not a Stable Audio 3 model; expected one of {', '.join(RELEASES)}.")


def variant_of(name: str) -> str | None:
    """The variant named in a folder or file name, or None. Hyphens equal underscores; the longest match wins."""
    name = name.lower().replace("_", "-")
    return next((variant for variant in sorted(RELEASES, key=len, reverse=True) if variant.lower() in name), None)


def listing() -> list[str]:
    """A line per model: name, size, gated or open, licence, repository."""
    lines = [
        f"{r.variant:<17} {r.size():5.1f} GB  {'gated' if r.gated else 'open ':<5}  {LICENCE.partition(' (')[0]}  {r.repository}"
        for r in RELEASES.values()
    ]
    return [*lines, f"{'(optimized)':<17} not loadable: {OPTIMIZED} {OPTIMIZED_REASON}"]
