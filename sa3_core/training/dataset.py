"""Latents of a folder of captioned audio, encoded once and cached.

The caption of `name.wav` is in `name.txt`, or in a table of the folder (`captions.csv`, `metadata.jsonl`, ...) with the columns file and
caption. Whole files are encoded in both polarities and cached in the folder's `.latents` under a hash of the file's content and of the
autoencoder. Crops are taken from the latents, as in the public code's pre-encoded data.
"""

import csv
import functools
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..audio import files as audio_files
from ..audio.waveform import to_model
from ..checkpoints.tensors import TensorFile, save, sha256
from ..config import ModelConfig
from ..errors import SA3Error
from ..files import parse_json

CACHE = ".latents"
TABLES = tuple(f"{name}.{kind}" for name in ("captions", "metadata") for kind in ("csv", "jsonl"))
FILE, CAPTION = ("file", "file_name", "path", "audio"), ("caption", "text", "prompt")  # accepted column names
MIN_SECONDS, MIN_PEAK_DB = 0.1, -60.0  # dB of full scale
MAX_TEXT_BYTES = 64 * 2**20
FORMAT = 1  # version of the cached files
ENCODE_CHUNK, ENCODE_OVERLAP = 128, 32  # latent frames

Encode = Callable[[Tensor], Tensor]  # audio (1, channels, N) -> latents (1, D, frames)


@dataclass(frozen=True)
class Clip:
    """A captioned audio file. name: path relative to the folder."""

    path: Path
    name: str
    caption: str


@dataclass(frozen=True)
class EncodedClip:
    """latents (2, D, frames): as recorded and with flipped polarity; silence follows the `valid` frames. seconds: duration of the whole
    file, rounded up, for the condition."""

    name: str
    caption: str
    latents: Tensor
    valid: int
    seconds: int


@dataclass(frozen=True)
class Dataset:
    """Training and validation clips. silence (D, k): frames repeated after a clip. skipped: a sentence per unusable file."""

    training: list[EncodedClip]
    validation: list[EncodedClip]
    silence: Tensor
    frame_rate: float
    skipped: list[str] = field(default_factory=list)

    @property
    def clips(self) -> list[EncodedClip]:
        return [*self.training, *self.validation]

    @property
    def minutes(self) -> float:
        """Total duration."""
        return sum(clip.valid for clip in self.clips) / self.frame_rate / 60

    def describe(self) -> str:
        """Number of clips, minutes, captions and skipped files, as lines of text."""
        seconds = [clip.valid / self.frame_rate for clip in self.clips]
        names = f" ({', '.join(clip.name for clip in self.validation)})" if 0 < len(self.validation) <= 8 else ""
        return "\n".join([
            f"{len(self.clips)} clips, {self.minutes:.1f} minutes, {min(seconds):.1f} to {max(seconds):.1f} s, "
            f"{len({clip.caption for clip in self.clips})} different captions",
            f"{len(self.training)} for training, {len(self.validation)} held out{names}",
            *(f"Skipped: {sentence}" for sentence in self.skipped),
        ])  # fmt: skip

    def fingerprint(self) -> str:
        """A hash of all clips and captions, 16 hex digits."""
        text = repr(sorted((clip.name, clip.caption, clip.valid, float(clip.latents.sum())) for clip in self.clips))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def crop(self, clip: EncodedClip, frames: int, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Latents (D, frames) and the number of valid frames: a random crop of a longer clip, a shorter one padded with silence.

        generator: draws the polarity and the start; None = the beginning, as recorded.
        """
        flipped = 0 if generator is None else int(torch.randint(2, (), generator=generator))
        latest = max(0, clip.valid - frames)
        start = int(torch.randint(latest + 1, (), generator=generator)) if latest and generator is not None else 0
        z = clip.latents[flipped, :, start : start + frames]
        if missing := frames - z.shape[1]:
            indices = (torch.arange(missing) + z.shape[1]) % self.silence.shape[1]
            z = torch.cat((z, self.silence[:, indices]), dim=1)
        return z, min(clip.valid - start, frames)


def find_clips(folder: str | Path) -> tuple[list[Clip], list[str]]:
    """The captioned audio files of a folder and its subfolders, sorted by path; a sentence for each file without a caption."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SA3Error(f"{folder} is not a folder; expected one with audio files and a caption for each.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in audio_files.READABLE and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise SA3Error(f"{folder} contains no audio files; expected formats such as {', '.join(audio_files.READABLE[:4])}.")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        captions, reason = _read_table(table, folder), f"{table.name} has no caption for it"
    else:
        texts = {file: file.with_suffix(".txt") for file in files}
        captions = {file: " ".join(_read_text(text).split()) for file, text in texts.items() if text.is_file()}
        reason = "there is no .txt file with a caption next to it"
    names = {file: file.relative_to(folder).as_posix() for file in files}
    clips = [Clip(file, names[file], captions[file]) for file in files if captions.get(file)]
    if not clips:
        raise SA3Error(
            f"None of the {len(files)} audio files in {folder} has a caption; write {files[0].stem}.txt next to {files[0].name}, and so "
            f"on, or a table {TABLES[0]} with the columns file and caption."
        )
    return clips, [f"{names[file]}: {reason}" for file in files if not captions.get(file)]


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise SA3Error(f"{file} has {file.stat().st_size >> 20} MB; expected captions of at most {MAX_TEXT_BYTES >> 20} MB.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SA3Error(f"{file} cannot be read as UTF-8 text ({error}); save it as UTF-8.") from error


def _read_table(table: Path, folder: Path) -> dict[Path, str]:
    """file -> caption. Raises SA3Error for a file that does not exist or is outside the folder."""
    text = _read_text(table)
    if table.suffix == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
        except csv.Error as error:
            raise SA3Error(f"{table} is not a CSV table ({error}); expected the header 'file,caption'.") from error
    else:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = [parse_json(line, f"{table}, line {i}", "one object per line") for i, line in lines]
    captions = {}
    for number, row in enumerate(rows, 2 if table.suffix == ".csv" else 1):
        where = f"{table}, row {number}"
        row = row if isinstance(row, dict) else {}
        name, caption = (next((row[key] for key in keys if isinstance(row.get(key), str)), None) for keys in (FILE, CAPTION))
        if name is None or caption is None:
            raise SA3Error(f"{where}: it has {list(row)[:6]}; expected the columns {FILE[0]} and {CAPTION[0]}.")
        parts = Path(name.replace("\\", "/")).parts
        if Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise SA3Error(f"{where}: '{name[:80]}' is outside the folder; use paths relative to it.")
        file = folder.joinpath(*parts)
        if not file.is_file():
            raise SA3Error(f"{where}: '{name[:80]}' is not in {folder}; correct the table, or add the file.")
        captions[file] = " ".join(caption.split())
    return captions


def read_clip(path: Path, config: ModelConfig) -> Tensor:
    """Audio (channels, N) at the model's sample rate, in [-1, 1]. Channels beyond the model's are discarded.

    Raises SA3Error for audio that is shorter than MIN_SECONDS, silent or not finite.
    """
    waveform, rate = audio_files.read(path)
    channels = config.same.audio_channels
    seconds, peak = waveform.shape[-1] / rate, float(waveform.abs().max())
    if seconds < MIN_SECONDS:
        raise SA3Error(f"{path} is {seconds:.3f} s long; expected at least {MIN_SECONDS} s.")
    if peak < 10 ** (MIN_PEAK_DB / 20):
        raise SA3Error(f"{path} is silent: its peak is below {MIN_PEAK_DB:g} dB.")
    waveform = waveform[:channels] if len(waveform) >= channels else waveform[:1]
    return to_model(str(path), rate, waveform, config.sample_rate, channels).clamp(-1, 1)


def held_out(names: Sequence[str], share: float) -> set[str]:
    """The share of the names with the smallest hashes, at least one when share > 0; independent of the order of the names."""
    count = min(len(names) - 1, max(1, round(share * len(names)))) if share > 0 else 0
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def load(
    folder: str | Path, config: ModelConfig, autoencoder: str, load_encoder: Callable[[], Encode], validation: float = 0.1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Dataset:  # fmt: skip
    """The dataset of a folder; files that are not cached are encoded.

    autoencoder: fingerprint of its weights. load_encoder(): called once, when there is a file to encode. validation: share of the clips
    held out. progress(done, total, name): may raise to stop; encoded files stay cached. Unusable files are skipped; SA3Error when no
    file is usable.
    """
    if not 0 <= validation < 1:
        raise SA3Error(f"The validation share is {validation}; expected 0 to less than 1.")
    clips, skipped = find_clips(folder)
    cache, spf = Path(folder) / CACHE, config.same.samples_per_frame
    encoder = functools.cache(load_encoder)
    align = config.same.encoder.align
    tail = -(-config.same.encoder.reach // align) * align  # the receptive field, in whole attention chunks
    path = cache / f"silence-{autoencoder}-{FORMAT}.safetensors"
    if (cached := _read_cache(path)) is None:
        zeros = torch.zeros(1, config.same.audio_channels, (2 * tail + align) * spf)
        cached = _write_cache(path, {"latents": encoder()(zeros)[0, :, tail : tail + align].float().cpu()})
    silence = cached["latents"]
    encoded = []
    for number, clip in enumerate(clips):
        path = cache / f"{sha256(clip.path)[:32]}-{autoencoder}-{FORMAT}.safetensors"
        if (cached := _read_cache(path)) is None:
            try:
                audio = read_clip(clip.path, config)
            except SA3Error as error:
                skipped.append(str(error))
                continue
            cached = _write_cache(path, _encode_clip(audio, config, tail, encoder()))
        samples = int(cached["samples"])
        seconds = math.ceil(samples / config.sample_rate)
        encoded.append(EncodedClip(clip.name, clip.caption, cached["latents"], -(-samples // spf), seconds))
        if progress is not None:
            progress(number + 1, len(clips), clip.name)
    if not encoded:
        raise SA3Error(f"None of the {len(clips)} captioned audio files in {folder} can be used: {skipped[0]}")
    names = held_out([clip.name for clip in encoded], validation)
    training = [clip for clip in encoded if clip.name not in names]
    return Dataset(training, [clip for clip in encoded if clip.name in names], silence, config.sample_rate / spf, skipped)


def _encode_clip(audio: Tensor, config: ModelConfig, tail: int, encode: Encode) -> dict[str, Tensor]:
    """Latents of a clip (channels, N) in both polarities, with the `tail` frames of silence that it still influences."""
    align, spf = config.same.encoder.align, config.same.samples_per_frame
    frames = -(-(-(-audio.shape[-1] // spf) + tail) // align) * align
    padded = torch.nn.functional.pad(audio, (0, (frames + tail) * spf - audio.shape[-1]))
    latents = torch.cat([encode(sign * padded[None])[..., :frames].float().cpu() for sign in (1, -1)])
    return {"latents": latents, "samples": torch.tensor(audio.shape[-1])}


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a cached file, None without one; a damaged file is deleted."""
    if not path.is_file():
        return None
    try:
        file = TensorFile(path)
        return {name: file.read(name) for name in file.names}
    except SA3Error:
        path.unlink()
        return None


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        save(path, tensors)
    except OSError as error:
        raise SA3Error(f"The encoded clips cannot be saved in {path.parent} ({error}); the folder must be writable.") from error
    return tensors
