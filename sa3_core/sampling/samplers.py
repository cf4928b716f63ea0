"""Samplers for rectified flow in the style of k-diffusion: x_t = (1 - t) data + t noise, velocity v, denoised data D = x - t v.

Every sampler has the signature (velocity, x, sigmas, noise, eta, report): velocity(x, t (B,)) -> v; x (B, C, T) at sigmas[:, 0];
sigmas (B, steps + 1) on the CPU; noise(t, t_next) -> the next draw; report(step, denoised) is called after each step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..audio.waveform import check_tensor
from ..backends.ambient import independent
from ..backends.device import to_device
from ..errors import SA3Error
from .schedule import first_rise


@independent
def sample(name: str, velocity: Callable, x: Tensor, sigmas: Tensor, noise=None, eta: float | None = None, callback=None) -> Tensor:
    """x (B, C, T) at the last noise level, from x at the first, by sampler `name`.

    sigmas (steps + 1,) or (B, steps + 1). noise: callable (t, t_next) -> draw like x, or a list of draws, for samplers that add noise.
    eta: strength of re-noising in the -sde samplers, None = 1. callback(step, total, denoised).
    """
    if not isinstance(name, str) or name not in SAMPLERS:
        raise SA3Error(f"Sampler '{name}' is unknown; choose one of {', '.join(SAMPLERS)}.")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 3:
        found = f"{tuple(x.shape)} in {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise SA3Error(f"The latents x are {found}; expected a floating-point tensor (B, C, T).")
    sigmas = sigmas_per_item("Sigmas", sigmas, len(x), torch.promote_types(x.dtype, torch.float32))
    if eta is not None and (isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 100):
        raise SA3Error(f"Eta is {eta}; expected 0 to 100, 1 for the standard SDE.")
    total = sigmas.shape[1] - 1
    if noise is None or isinstance(noise, (list, tuple)):
        draws, needed = noise or (), draws_per_run(name, total, eta, ends_at_zero=not bool(sigmas[:, -1].any()))
        if len(draws) < needed:
            raise SA3Error(f"There are {len(draws)} noise draws; the sampler {name} needs {needed} for {total} steps.")
        for draw in draws:
            if not isinstance(draw, Tensor) or not draw.is_floating_point():
                raise SA3Error(f"A noise draw is {getattr(draw, 'dtype', type(draw).__name__)}; expected a floating-point tensor like x.")
        remaining = iter(draws)

        def noise(t, t_next):
            return next(remaining)

    if not callable(noise):
        raise SA3Error(f"The noise is {noise!r}; expected a function (t, t_next), or a list of draws.")
    report = (lambda step, denoised: None) if callback is None else (lambda step, denoised: callback(step, total, denoised))
    eta = (1.0 if eta is None else eta) if name.endswith("-sde") else 0.0
    return SAMPLERS[name](velocity, x, sigmas, noise, eta, report)


def sigmas_per_item(name: str, sigmas, batch: int, dtype: torch.dtype) -> Tensor:
    """Noise levels (steps + 1,) or (B, steps + 1) as a tensor (B, steps + 1) on the CPU. Raises SA3Error with the name otherwise, and for
    levels that do not fall."""
    try:
        sigmas = torch.as_tensor(sigmas)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SA3Error(f"{name} are {type(sigmas).__name__}; expected a tensor or a list of noise levels.") from error
    check_tensor(name, sigmas, integers=True)
    sigmas = sigmas.to("cpu", dtype)
    sigmas = sigmas.expand(batch, -1) if sigmas.dim() == 1 else sigmas
    if sigmas.dim() != 2 or sigmas.shape[0] != batch or sigmas.shape[1] < 2:
        raise SA3Error(f"{name} have shape {tuple(sigmas.shape)}; expected (steps + 1,) or ({batch}, steps + 1), at least two points.")
    if not bool(torch.isfinite(sigmas).all()):
        raise SA3Error(f"{name} contain NaN or infinite values; expected noise levels.")
    if rise := first_rise(sigmas):
        step, before, after = rise
        raise SA3Error(f"{name} do not fall: level {step} is {after:.7g}, after {before:.7g}; expected each level below the one before.")
    if len(set((sigmas[:, -1] == 0).tolist())) > 1:
        raise SA3Error(f"{name} end at 0 for some items only; expected the same for all items of a batch.")
    return sigmas


def _steps(sigmas: Tensor):
    """(i, t, t_next) of each step; t, t_next (B,)."""
    columns = sigmas.unbind(1)
    return ((i, columns[i], columns[i + 1]) for i in range(len(columns) - 1))


def _like(t: Tensor, x: Tensor) -> Tensor:
    """One number per item, (B,), as (B, 1, 1) on the device and in the dtype of x."""
    return to_device(t, x.device, x.dtype)[:, None, None]


def pingpong(velocity, x, sigmas, noise, eta, report):
    """Denoise, then re-noise to the next level: multistep consistency sampling (arXiv 2303.01469, algorithm 1)."""
    for i, t, t_next in _steps(sigmas):
        denoised = x - _like(t, x) * velocity(x, t)
        x = (1 - _like(t_next, x)) * denoised + _like(t_next, x) * noise(t, t_next)
        report(i, denoised)
    return x


def euler(velocity, x, sigmas, noise, eta, report):
    """Euler's method."""
    for i, t, t_next in _steps(sigmas):
        v = velocity(x, t)
        denoised = x - _like(t, x) * v
        x = x + _like(t_next - t, x) * v
        report(i, denoised)
    return x


def heun(velocity, x, sigmas, noise, eta, report):
    """Heun's method of second order; an Euler step where t_next is 0."""
    for i, t, t_next in _steps(sigmas):
        v = velocity(x, t)
        denoised = x - _like(t, x) * v
        dt = _like(t_next - t, x)
        if bool((t_next > 0).any()):
            second = velocity(x + dt * v, t_next)
            v = torch.where(_like(t_next, x) > 0, (v + second) / 2, v)
        x = x + dt * v
        report(i, denoised)
    return x


def rk4(velocity, x, sigmas, noise, eta, report):
    """The classic Runge-Kutta method. The network is not trained at t = 0, so the last stage is evaluated at 1e-5 at least."""
    for i, t, t_next in _steps(sigmas):
        dt, middle = _like(t_next - t, x), (t + t_next) / 2
        k1 = velocity(x, t)
        denoised = x - _like(t, x) * k1
        k2 = velocity(x + dt / 2 * k1, middle)
        k3 = velocity(x + dt / 2 * k2, middle)
        k4 = velocity(x + dt * k3, t_next.clamp(min=1e-5))
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        report(i, denoised)
    return x


def dpmpp(velocity, x, sigmas, noise, eta, report):
    """DPM-Solver++(2M) (arXiv 2211.01095) for flows as in the public code: the first and the last step are of first order."""
    last = sigmas.shape[1] - 2
    lam = torch.log(((1 - sigmas) / sigmas).clamp(min=1e-10))  # the ratio is 0 at t = 1
    previous = None
    for i, t, t_next in _steps(sigmas):
        denoised = x - _like(t, x) * velocity(x, t)
        target = denoised
        if 0 < i < last:
            r = _like((lam[:, i] - lam[:, i - 1]) / (lam[:, i + 1] - lam[:, i]), x)
            target = (1 + 1 / (2 * r)) * denoised - previous / (2 * r)
        x = target + _like(t_next / t, x) * (x - target)
        previous = denoised
        report(i, denoised)
    return x


def _log_snr_steps(sigmas: Tensor):
    """(i, t, t_next, h) of each step for the k-diffusion solvers: h (B,) is the step in lambda = ln((1 - t) / t), None where t_next is 0.

    Levels of 1, where lambda is infinite, become 1 - 1e-4.
    """
    top = torch.tensor(1 - 1e-4, dtype=torch.float32).to(sigmas.dtype)
    sigmas = torch.where(sigmas >= 1, top, sigmas)
    lam = torch.log((1 - sigmas) / sigmas)
    for i, t, t_next in _steps(sigmas):
        yield i, t, t_next, None if bool((t_next == 0).all()) else lam[:, i + 1] - lam[:, i]


def _sde_step(x, denoised, t, t_next, h, eta):
    """x after a first-order step of the SDE solvers, without its noise; h (1 + eta) and the standard deviation of that noise, (B,)."""
    h_eta = h * (eta + 1)
    scale = _like(-torch.expm1(-h_eta) * (1 - t_next), x)
    spread = t_next * (-torch.expm1(-2 * h * eta)).clamp(min=0).sqrt()
    return _like(t_next / t * torch.exp(-h * eta), x) * x + scale * denoised, h_eta, spread


def dpmpp_2m_sde(velocity, x, sigmas, noise, eta, report):
    """DPM-Solver++(2M) SDE, midpoint variant (k-diffusion). eta 0: the deterministic DPM-Solver++(2M)."""
    previous = h_last = None
    for i, t, t_next, h in _log_snr_steps(sigmas):
        denoised = x - _like(t, x) * velocity(x, t)
        if h is None:
            x = denoised
        else:
            x, h_eta, spread = _sde_step(x, denoised, t, t_next, h, eta)
            if previous is not None:
                x = x + _like(0.5 * (1 - t_next) * -torch.expm1(-h_eta) * h / h_last, x) * (denoised - previous)
            if eta:
                x = x + _like(spread, x) * noise(t, t_next)
        previous, h_last = denoised, h
        report(i, denoised)
    return x


def dpmpp_3m_sde(velocity, x, sigmas, noise, eta, report):
    """DPM-Solver++(3M) SDE (k-diffusion)."""
    d_1 = d_2 = h_1 = h_2 = None
    for i, t, t_next, h in _log_snr_steps(sigmas):
        denoised = x - _like(t, x) * velocity(x, t)
        if h is None:
            x = denoised
        else:
            x, h_eta, spread = _sde_step(x, denoised, t, t_next, h, eta)
            phi_2 = torch.expm1(-h_eta) / h_eta + 1
            if d_2 is not None:
                phi_3 = phi_2 / h_eta - 0.5
                r0, r1 = h_1 / h, h_2 / h
                slope_0 = (denoised - d_1) / _like(r0, x)
                slope_1 = (d_1 - d_2) / _like(r1, x)
                first = slope_0 + (slope_0 - slope_1) * _like(r0 / (r0 + r1), x)
                second = (slope_0 - slope_1) / _like(r0 + r1, x)
                x = x + _like((1 - t_next) * phi_2, x) * first - _like((1 - t_next) * phi_3, x) * second
            elif d_1 is not None:
                x = x + _like((1 - t_next) * phi_2 * h / h_1, x) * (denoised - d_1)
            if eta:
                x = x + _like(spread, x) * noise(t, t_next)
        d_1, d_2, h_1, h_2 = denoised, d_1, h, h_1
        report(i, denoised)
    return x


SAMPLERS = {
    "pingpong": pingpong, "euler": euler, "heun": heun, "rk4": rk4, "dpmpp": dpmpp,
    "dpmpp-2m": dpmpp_2m_sde, "dpmpp-2m-sde": dpmpp_2m_sde, "dpmpp-3m-sde": dpmpp_3m_sde,
}  # fmt: skip


def draws_per_run(name: str, steps: int, eta: float | None = None, ends_at_zero: bool = True) -> int:
    """Number of noise draws in a run of a sampler."""
    if name == "pingpong":
        return steps
    return steps - ends_at_zero if name.endswith("-sde") and (eta is None or eta > 0) else 0
