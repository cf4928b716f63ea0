"""The files of a training run: the LoRA, intermediate LoRAs next to it, and a folder of state, curves and samples."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import SA3Error
from ..files import read_json
from ..lora.formats import read_lora
from .trainer import STATE


@dataclass(frozen=True)
class RunFiles:
    """out: the final LoRA. folder: state, curves and samples. identity: the settings that a resumed run must share."""

    out: Path
    folder: Path
    identity: dict

    @functools.cached_property
    def run_id(self) -> str:
        """A hash of the identity, 16 hex digits; saved in each LoRA of the run."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def lora_at(self, step: int) -> Path:
        return self.out.with_name(f"{self.out.stem}_step{step:06}.safetensors")

    def create(self) -> None:
        """Create the folder and its run.json. Raises SA3Error when the folder or `out` belongs to another run."""
        if self.out.suffix != ".safetensors":
            raise SA3Error(f"The LoRA's file is {self.out.name}; expected a name that ends in .safetensors.")
        note = self.folder / "run.json"
        if note.is_file():
            previous = read_json(note, "the settings of a training run")
            previous = previous if isinstance(previous, dict) else {}
            changes = [f"{key} {previous.get(key)} is now {value}" for key, value in self.identity.items() if previous.get(key) != value]
            if changes:
                raise SA3Error(
                    f"The run in {self.folder} was begun with other settings ({'; '.join(changes)}); choose another name, or restore them."
                )
        if self.out.exists() and (not (self.folder / STATE).is_file() or read_lora(self.out).config.get("run") != self.run_id):
            raise SA3Error(f"{self.out} exists already and is not of this run; choose another name.")
        self._write(note, self.identity)

    def check_data(self, fingerprint: str) -> None:
        """Raise SA3Error when a run that is resumed had other clips or captions."""
        note = self.folder / "data.json"
        if (self.folder / STATE).is_file() and note.is_file() and read_json(note, "the fingerprint of clips") != fingerprint:
            raise SA3Error(f"The clips or captions of the run in {self.folder} have changed; restore them, or choose another name.")
        self._write(note, fingerprint)

    def _write(self, note: Path, value) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SA3Error(f"The run cannot be saved in {self.folder} ({error}). Make room, or choose another folder.") from error
