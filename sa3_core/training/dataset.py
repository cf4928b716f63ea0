"""A folder of audio with captions -> latents to train on, encoded once.

Captions are `name.txt` beside `name.wav`, or a table in the folder (`captions.csv`, `metadata.jsonl`, ...) with the columns file and
caption. Whole files are encoded, as they are and with their polarity flipped, and kept below `.latents` of the folder under a name
made of the file's content and the autoencoder; a crop is then a stretch of frames, as the public code reads pre-encoded data.
"""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..audio import files as audio_files
from ..audio.waveform import check_finite, to_model
from ..checkpoints.checkpoint import TensorFile, sha256
from ..config import ModelConfig
from ..errors import SA3Error
from ..files import parse_json, publish

CACHE = ".latents"
TABLES = tuple(f"{name}.{kind}" for name in ("captions", "metadata") for kind in ("csv", "jsonl"))
FILE, CAPTION = ("file", "file_name", "path", "audio"), ("caption", "text", "prompt")  # names of a table's columns
SHORTEST, QUIETEST = 0.1, -60.0  # seconds; dB of full scale that the peak must reach
LARGEST_TABLE = 64 * 2**20
FORMAT = 1  # of what is kept; a change makes everything anew
ENCODE_CHUNK, ENCODE_OVERLAP = 128, 32  # latent frames


@dataclass(frozen=True)
class Clip:
    """An audio file and what is said of it. name: its place below the folder."""

    path: Path
    name: str
    caption: str


@dataclass(frozen=True)
class Encoded:
    """latents (2, D, frames): as recorded and flipped, with some frames of silence behind the `valid` ones. seconds: of the whole
    file, rounded up, as the model is told."""

    name: str
    caption: str
    latents: Tensor
    valid: int
    seconds: int


@dataclass(frozen=True)
class Dataset:
    """training and validation clips. silence (D, k): frames that repeat behind a clip. rejected: a sentence each."""

    training: list[Encoded]
    validation: list[Encoded]
    silence: Tensor
    frame_rate: float
    rejected: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Counts, minutes, captions, and what was left out."""
        clips = [*self.training, *self.validation]
        seconds = [clip.valid / self.frame_rate for clip in clips]
        lines = [
            f"{len(clips)} clips, {sum(seconds) / 60:.1f} minutes, {min(seconds):.1f} to {max(seconds):.1f} s, "
            f"{len({clip.caption for clip in clips})} different captions",
            f"{len(self.training)} to train on, {len(self.validation)} held out"
            + (f" ({', '.join(clip.name for clip in self.validation)})" if 0 < len(self.validation) <= 8 else ""),
        ]
        return "\n".join(lines + [f"Left out: {sentence}" for sentence in self.rejected])

    def digest(self) -> str:
        """Changes with every clip and caption."""
        text = repr(sorted((clip.name, clip.caption, clip.valid, float(clip.latents.sum())) for clip in (*self.training, *self.validation)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def crop(self, clip: Encoded, frames: int, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """(D, frames) of a clip, and how many of them are valid: a random stretch of a longer one, silence behind a shorter one.

        generator: also draws the polarity; None = the clip's beginning as it was recorded.
        """
        flipped = 0 if generator is None else int(torch.randint(2, (), generator=generator))
        room = max(0, clip.valid - frames)
        start = int(torch.randint(room + 1, (), generator=generator)) if room and generator is not None else 0
        z = clip.latents[flipped, :, start : start + frames]
        missing = frames - z.shape[1]
        if missing:
            at = (torch.arange(missing) + z.shape[1]) % self.silence.shape[1]
            z = torch.cat((z, self.silence[:, at]), dim=1)
        return z, min(clip.valid - start, frames)


def find_clips(folder: str | Path) -> tuple[list[Clip], list[str]]:
    """The captioned audio files below a folder in the order of their names, and a sentence for each that has no caption."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SA3Error(f"{folder} is no folder; expected one with audio files and a caption for each.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in audio_files.READABLE and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise SA3Error(f"{folder} holds no audio; expected {', '.join(audio_files.READABLE[:4])} files or the like.")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    captions = _from_table(table, folder) if table is not None else {file: _text_beside(file) for file in files}
    clips = [Clip(file, file.relative_to(folder).as_posix(), captions[file]) for file in files if captions.get(file)]
    where = f"{table.name} has no caption for it" if table is not None else "it has no .txt file with a caption beside it"
    if not clips:
        raise SA3Error(
            f"None of the {len(files)} audio files in {folder} has a caption; put {files[0].stem}.txt beside {files[0].name} "
            f"with what is heard, and so on, or a table {TABLES[0]} with the columns file and caption."
        )
    return clips, [f"{file.relative_to(folder).as_posix()}: {where}" for file in files if not captions.get(file)]


def _text_beside(file: Path) -> str:
    """One caption: line breaks are spaces."""
    beside = file.with_suffix(".txt")
    return " ".join(_text(beside).split()) if beside.is_file() else ""


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_TABLE:
            raise SA3Error(f"{file} has {file.stat().st_size >> 20} MB; expected captions.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SA3Error(f"{file} cannot be read as text in UTF-8 ({error}).") from error


def _from_table(table: Path, folder: Path) -> dict[Path, str]:
    """file -> caption. A name that is not there, or leads out of the folder, is refused."""
    text = _text(table)
    if table.suffix == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
        except csv.Error as error:
            raise SA3Error(f"{table} is no table ({error}); expected a first line 'file,caption'.") from error
    else:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = [parse_json(line, f"{table}, line {i}", "one object per line") for i, line in lines]
    captions = {}
    for number, row in enumerate(rows, 2 if table.suffix == ".csv" else 1):
        row = row if isinstance(row, dict) else {}
        name, caption = (next((row[key] for key in keys if isinstance(row.get(key), str)), None) for keys in (FILE, CAPTION))
        if name is None or caption is None:
            raise SA3Error(f"{table}, row {number}: it has {list(row)[:6]}; expected the columns {FILE[0]} and {CAPTION[0]}.")
        parts = Path(name.replace("\\", "/")).parts
        if Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise SA3Error(f"{table}, row {number}: '{name[:80]}' leads out of the folder; give names below it.")
        file = folder.joinpath(*parts)
        if not file.is_file():
            raise SA3Error(f"{table}, row {number}: '{name[:80]}' is not in {folder}.")
        captions[file] = " ".join(caption.split())
    return captions


def read_clip(path: Path, config: ModelConfig) -> Tensor:
    """Audio (channels, N) at the model's rate, within full scale. Channels beyond the model's are dropped."""
    waveform, rate = audio_files.read(path)
    check_finite(str(path), waveform)
    channels = config.same.audio_channels
    seconds, peak = waveform.shape[-1] / rate, float(waveform.abs().max())
    if seconds < SHORTEST:
        raise SA3Error(f"{path} is {seconds:.3f} s long; expected at least {SHORTEST} s.")
    if peak < 10 ** (QUIETEST / 20):
        raise SA3Error(f"{path} is silent: its peak is below {QUIETEST:g} dB.")
    waveform = waveform[:channels] if len(waveform) > channels else waveform[:1] if len(waveform) < channels else waveform
    return to_model(str(path), rate, waveform, config.sample_rate, channels).clamp(-1, 1)


def held_out(names: Sequence[str], share: float) -> set[str]:
    """The share of the names with the smallest hashes, at least one where a share is asked for: the same whatever their order."""
    count = min(len(names) - 1, max(1, round(share * len(names)))) if share > 0 else 0
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


Encode = Callable[[Tensor], Tensor]  # (1, channels, N) -> (1, D, frames)


def prepare(
    folder: str | Path, config: ModelConfig, autoencoder: str, encode: Callable[[], Encode], validation: float = 0.1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Dataset:  # fmt: skip
    """Encode what is not encoded yet, and split. autoencoder: a word that changes with its weights; encode(): makes the encoder ready,
    called when there is something to encode. progress(done, total, name) may raise to stop: what is done is kept.

    Files that cannot be used are left out, with a sentence; that none is left is an error.
    """
    if not 0 <= validation < 1:
        raise SA3Error(f"The validation share is {validation}; expected 0 to less than 1.")
    clips, rejected = find_clips(folder)
    cache, spf = Path(folder) / CACHE, config.same.samples_per_frame
    ready: list[Encode] = []

    def encoder() -> Encode:
        if not ready:
            ready.append(encode())
        return ready[0]

    align, tail = config.same.encoder.align, _silent_frames(config)
    quiet = cache / f"silence-{autoencoder}-{FORMAT}.safetensors"
    if (stored := _stored(quiet)) is None:
        zeros = torch.zeros(1, config.same.audio_channels, (2 * tail + align) * spf)
        stored = _keep(quiet, {"latents": encoder()(zeros)[0, :, tail : tail + align].float().cpu()})
    silence = stored["latents"]
    found = []
    for number, clip in enumerate(clips):
        place = cache / f"{sha256(clip.path)[:32]}-{autoencoder}-{FORMAT}.safetensors"
        if (stored := _stored(place)) is None:
            try:
                audio = read_clip(clip.path, config)
            except SA3Error as error:
                rejected.append(str(error))
                continue
            stored = _keep(place, _encoded(audio, config, tail, encoder()))
        samples = int(stored["samples"])
        found.append(Encoded(clip.name, clip.caption, stored["latents"], -(-samples // spf), math.ceil(samples / config.sample_rate)))
        if progress is not None:
            progress(number + 1, len(clips), clip.name)
    if not found:
        raise SA3Error(f"None of the {len(clips)} captioned audio files in {folder} can be used: {rejected[0]}")
    out = held_out([clip.name for clip in found], validation)
    training, rest = ([clip for clip in found if (clip.name in out) == side] for side in (False, True))
    return Dataset(training, rest, silence, config.sample_rate / spf, rejected)


def _silent_frames(config: ModelConfig) -> int:
    """Frames after which the encoder no longer sees the sound before them, in whole attention chunks."""
    side = config.same.encoder
    return -(-side.reach // side.align) * side.align


def _encoded(audio: Tensor, config: ModelConfig, tail: int, encode: Encode) -> dict[str, Tensor]:
    """What is kept of a clip (channels, N): both polarities, and the silence in which the sound still echoes."""
    align, spf = config.same.encoder.align, config.same.samples_per_frame
    frames = -(-(-(-audio.shape[-1] // spf) + tail) // align) * align
    padded = torch.nn.functional.pad(audio, (0, (frames + tail) * spf - audio.shape[-1]))
    latents = torch.cat([encode(sign * padded[None])[..., :frames].float().cpu() for sign in (1, -1)])
    return {"latents": latents, "samples": torch.tensor(audio.shape[-1])}


def _stored(place: Path) -> dict[str, Tensor] | None:
    """What was kept under a name; a damaged file is made anew."""
    if not place.is_file():
        return None
    try:
        file = TensorFile(place)
        return {name: file.read(name) for name in file.names}
    except SA3Error:
        place.unlink()
        return None


def _keep(place: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        publish(place, lambda part: save_file({name: t.contiguous() for name, t in tensors.items()}, part))
    except OSError as error:
        raise SA3Error(f"The encoded clips cannot be kept in {place.parent} ({error}); the folder must be writable.") from error
    return tensors
