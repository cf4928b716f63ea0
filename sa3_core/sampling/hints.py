"""Warnings about a request and about its result. Never raises."""

import types

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.checks import SILENT
from ..config import ModelConfig
from .guidance import Guidance
from .runs import Plan

RENOISING = ("pingpong", "dpmpp-2m-sde", "dpmpp-3m-sde")  # samplers that add noise at every step
CLIPPED, NOISE = 0.01, 0.7  # share of samples beyond full scale; spectral flatness


def setting_warnings(config: ModelConfig, plan: Plan, guidance: Guidance) -> list[str]:
    """Sentences about settings that often harm the result."""
    warnings, usual = [], config.default_steps
    if config.is_base and plan.sampler in RENOISING and plan.eta != 0 and guidance.cfg >= 4:
        warnings.append(
            f"The sampler {plan.sampler} adds noise at every step, which on a base model at cfg {guidance.cfg:g} ends near silence. "
            "Use euler or dpmpp."
        )
    if not config.is_base and guidance.cfg != 1:
        warnings.append(f"This is a post-trained model, made for cfg 1; cfg {guidance.cfg:g} doubles the time and often harms the sound.")
    if not usual / 2 <= plan.steps <= usual * 4:
        kind = "base" if config.is_base else "post-trained"
        warnings.append(f"steps is {plan.steps}, far from the {usual} that suit this {kind} model.")
    if not isinstance(F.scaled_dot_product_attention, types.BuiltinFunctionType):
        warnings.append("Another node pack has replaced torch's attention. Quantised attention garbles Stable Audio 3; switch it off.")
    return warnings


def length_warnings(config: ModelConfig, plan: Plan) -> list[str]:
    longest = max(plan.lengths.seconds)
    if longest <= 0.95 * config.max_seconds:
        return []
    return [f"{longest:g} s is close to the model's limit of {config.max_seconds:.1f} s; endings may be cut short."]


def prompt_warnings(mask: Tensor) -> list[str]:
    """mask (B, n): True for the tokens of each item's prompt."""
    if bool(mask.any(1).all()):
        return []
    return [f"{'A' if bool(mask.any()) else 'The'} prompt is empty: the model chooses the sound. Describe what to hear."]


def audio_warnings(audio: Tensor) -> list[str]:
    """Sentences about decoded audio (B, C, N) that is broken, silent, noise or clipped, with a likely cause."""
    warnings = []
    for i, clip in enumerate(audio):
        name = f"Item {i + 1}: the audio" if len(audio) > 1 else "The audio"
        if not bool(torch.isfinite(clip).all()):
            warnings.append(f"{name} contains NaN. Likely cause: a 16-bit overflow or a damaged file; try dtype fp32.")
            continue
        peak, clipped = float(clip.abs().max()), float((clip.abs() > 1).float().mean())
        if peak < SILENT:
            cause = "a re-noising sampler at high cfg, or two LoRAs on the seconds"
            warnings.append(f"{name} is silent (peak {peak:.1e}). Likely cause: {cause}.")
        elif flatness(clip) > NOISE:
            warnings.append(f"{name} is close to white noise. Likely cause: random or wrong weights, quantised attention, or 16-bit SAME.")
        if clipped > CLIPPED:
            warnings.append(f"{name} exceeds full scale in {100 * clipped:.1f} % of its samples (peak {peak:.2f}); players will clip it.")
    return warnings


def flatness(clip: Tensor, size: int = 2048) -> float:
    """Spectral flatness of a clip (C, N): geometric over arithmetic mean of its average power spectrum; near 1 for white noise."""
    mono = clip.float().mean(0)
    if mono.numel() < size:
        return 0.0
    frames = mono[: mono.numel() // size * size].unflatten(0, (-1, size)) * torch.hann_window(size, device=mono.device, dtype=mono.dtype)
    power = torch.fft.rfft(frames).abs().square().mean(0)[1:] + 1e-20
    return float(power.log().mean().exp() / power.mean())
