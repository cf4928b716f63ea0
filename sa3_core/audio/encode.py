"""Encoders for audio files, through PyAV: FLAC, MP3, Opus and AAC."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import SA3Error

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # channels -> FFmpeg's layout
QUALITIES = ("low", "medium", "high", "best")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of the disk, not of the encoder
BLOCK = 1 << 16  # samples per call of the encoder


def _rates(*kbits: int) -> list[dict[str, str]]:
    return [{"b": f"{kbit}000"} for kbit in kbits]


def _lame_v(quality: int) -> dict[str, str]:
    """LAME's variable bit rate -V 0 (best) to 9; FFmpeg counts quality in 118ths."""
    return {"flags": "+qscale", "global_quality": str(118 * quality)}


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg. rates: sample rates in Hz that it takes, empty = any. settings: one per entry of QUALITIES."""

    name: str
    container: str
    sample_format: str
    channels: int = 2
    rates: Sequence[int] = ()
    settings: Sequence[dict[str, str]] = ({},) * len(QUALITIES)
    options: dict[str, str] = field(default_factory=dict)  # of the container

    def rate_for(self, rate: int) -> int:
        """The lowest accepted sample rate that is not below `rate`, else the highest."""
        return min((own for own in self.rates if own >= rate), default=max(self.rates, default=rate))


MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# ComfyUI reads the metadata at the start of the file, under their own names; the edit list counts samples
MP4 = {"movflags": "+use_metadata_tags+faststart"}
CODECS = {
    "flac16": Codec("flac", "flac", "s16", max(LAYOUTS)),
    "flac24": Codec("flac", "flac", "s32", max(LAYOUTS)),
    "mp3": Codec("libmp3lame", "mp3", "fltp", 2, MPEG_RATES, [_lame_v(4), _lame_v(2), _lame_v(0), *_rates(320)]),
    "opus": Codec("libopus", "opus", "flt", 2, (48000,), _rates(64, 96, 128, 256)),
    "m4a": Codec("aac", "ipod", "fltp", 2, (*MPEG_RATES, 64000, 88200, 96000), _rates(96, 128, 192, 256), MP4),
}


def check(codec: Codec, kind: str, channels: int) -> None:
    """Raise SA3Error where the codec cannot hold so many channels, or PyAV is not installed."""
    if channels > codec.channels:
        others = "wav" if kind.startswith("flac") else f"flac (up to {max(LAYOUTS)}) or wav"
        raise SA3Error(f"The audio has {channels} channels; {kind} holds at most {codec.channels}. Save it as {others}.")
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SA3Error(f"Writing {kind} needs the package 'av', which ComfyUI ships with; install it, or save as wav.") from error


def encode(file, samples: Tensor, rate: int, codec: Codec, metadata: dict[str, str], quality: str = "high") -> None:
    """Write samples (C, N) to an open file: int32 of 16 or 24 bits for FLAC, else floats. The same input gives the same bytes."""
    import av

    def reopen(*_):
        """A second handle, with which FFmpeg moves the index of an MP4 to the start of the file."""
        file.flush()
        return open(file.name, "rb")

    channels, layout = samples.shape[0], LAYOUTS[samples.shape[0]]
    options = {"fflags": "+bitexact", **codec.options}
    if codec.container == "ipod":
        options["movie_timescale"] = str(rate)
    try:
        with av.open(file, "w", format=codec.container, options=options, io_open=reopen) as container:
            container.metadata.update(metadata)
            stream = container.add_stream(codec.name, rate=rate, options=codec.settings[QUALITIES.index(quality)])
            stream.codec_context.layout, stream.codec_context.format = layout, codec.sample_format
            for start in range(0, samples.shape[1], BLOCK):
                frame = av.AudioFrame.from_ndarray(_values(samples[:, start : start + BLOCK], codec), codec.sample_format, layout)
                frame.sample_rate, frame.pts = rate, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) in FULL:
            raise OSError(error.errno, error.strerror) from error
        raise SA3Error(f"The {codec.name} encoder refused {channels} channels at {rate} Hz ({error}); save as wav.") from error


def _values(samples: Tensor, codec: Codec):
    """The samples as the encoder's array: (C, n) where it is planar, else (1, n C)."""
    if codec.sample_format == "s32":
        samples = samples << 8  # FFmpeg reads the upper 24 of 32 bits
    values = samples if codec.sample_format == "fltp" else samples.T.reshape(1, -1)
    return values.to(torch.int16 if codec.sample_format == "s16" else values.dtype).contiguous().numpy()
