"""The recorded cases, shared by tests and benchmarks; importable without pytest."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"

GUIDANCE = {
    "cfg4_apg0": {"apg": 0.0},
    "cfg4_apg1": {"apg": 1.0},
    "cfg4_apg0.5": {"apg": 0.5},
    "cfg4_phi0.6": {"apg": 0.0, "rescale": 0.6},
    "cfg4_norm2": {"apg": 0.0, "norm_threshold": 2.0},
    "cfg4_interval_out": {"cfg_interval": (0.0, 0.5)},
    "cfg4_apg1_neg": {"apg": 1.0},
    "cfg4_apg1_padded": {"apg": 1.0},
}
SAME = {  # case: (direction, input, arguments)
    "encode": ("encode", "audio", {}),
    "encode_odd": ("encode", "audio_odd", {}),
    "encode_5": ("encode", "audio_5", {}),
    "encode_long": ("encode", "audio_long_seedless", {}),
    "encode_long_chunk16_overlap4": ("encode", "audio_long_seedless", {"chunk_size": 16, "overlap": 4}),
    "decode": ("decode", "latents", {}),
    "decode_odd": ("decode", "latents_odd", {}),
    "decode_long": ("decode", "latents_long", {}),
    "decode_long_chunk16_overlap4": ("decode", "latents_long", {"chunk_size": 16, "overlap": 4}),
}


def golden_tensors(variant: str) -> dict[str, Tensor]:
    """The recorded outputs of a variant; tests/data/golden.safetensors holds those that are equal in all variants."""
    return {**load_file(DATA / "golden.safetensors"), **load_file(DATA / variant / "golden.safetensors")}


def run_arguments(case: dict, key: str, golden: dict, schedule: dict) -> dict:
    """`Model.generate`'s arguments for a recorded whole run. case: its entry in index.json; schedule: the model's own."""
    source = (44100, golden["gen.source_audio"])
    options = {"schedule": dict(schedule, mode=case["schedule"])}
    if "init_audio" in case:
        options |= {"init_audio": source, "init_noise_level": case["init_noise_level"]}
    if "inpaint_audio" in case:
        options |= {"source_audio": source, "regions": regions_of(case)}
    if f"{key}.step_noise" in golden:
        options["step_noise"] = list(golden[f"{key}.step_noise"])
    return {
        "prompt": case["prompt"], "duration": case["duration"], "negative_prompt": case.get("negative_prompt"), "steps": case["steps"],
        "sampler": case["sampler"], "cfg": case.get("cfg_scale", 1.0), "apg": case.get("apg_scale", 1.0),
        "initial_noise": golden[f"{key}.noise"], "return_latents": True, **options,
    }  # fmt: skip


def regions_of(case: dict) -> list[tuple[float, float]]:
    start, end = case["inpaint_mask_start_seconds"], case["inpaint_mask_end_seconds"]
    return list(zip(start, end, strict=True)) if isinstance(start, list) else [(start, end)]
