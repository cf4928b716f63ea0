"""Measure time and memory of loading a real-size model in every layout, through sa3_core and through the nodes.

    python benchmarks/layouts.py [--release small-music] [--comfyui PATH]

Weights are random, made in a temporary folder and deleted afterwards. Each load is a process of its own. Extra memory is the peak of
anonymous memory above what the process held before; the weights' share is what the loaded modules hold. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tools.launcher.environment import default_comfyui

LIMIT = 600e6  # bytes beyond the weights


def measure(load) -> dict:
    """Run load() -> modules; seconds, bytes of their weights, peak of extra anonymous memory."""
    import os
    import time

    from benchmarks.measure import Peak

    start = time.perf_counter()
    with Peak(os.getpid()) as peak:
        modules = load()
    seconds = time.perf_counter() - start
    tensors = {tensor.data_ptr(): tensor.nbytes for module in modules for tensor in module.state_dict().values()}
    return {"seconds": seconds, "weights": sum(tensors.values()), "extra": peak.extra}


def through_core(path: Path, autoencoder: bool) -> dict:
    import transformers.models.t5gemma.modeling_t5gemma  # noqa: F401  so that its import is not counted

    import sa3_core

    single = path.parent / "t5gemma_b_b_ul2.safetensors"
    encoder = single if single.is_file() and not autoencoder else None

    def load():
        model = sa3_core.load(path, text_encoder=encoder, autoencoder=autoencoder)
        return [module for module in (model.module, model.text_encoder) if module is not None]

    return measure(load)


def through_nodes(path: Path, autoencoder: bool, comfyui: Path) -> dict:
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    with tempfile.TemporaryDirectory() as base:
        sys.argv = ["main.py", "--cpu", "--base-directory", base]
        import comfy.cli_args
        import folder_paths
        import transformers.models.t5gemma.modeling_t5gemma  # noqa: F401
        import utils.extra_config  # noqa: F401

        folder = str(path.parent)
        for key in ("checkpoints", "text_encoders", "vae"):
            folder_paths.folder_names_and_paths[key] = ([folder], {".safetensors"})
        spec = importlib.util.spec_from_file_location("sa3_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        pack = sys.modules["sa3_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)

        async def listed():
            return await (await pack.comfy_entrypoint()).get_node_list()

        nodes = {node.define_schema().node_id: node for node in asyncio.run(listed())}

        def load():
            if autoencoder:
                (vae,) = nodes["SA3_AutoencoderLoader"].execute(autoencoder="SAME-S", file=path.name, dtype="auto").args
                return [vae.first_stage_model]
            model, clip, vae = nodes["SA3_ModelLoader"].execute(model="auto", file=path.name, dtype="auto", text_encoder="auto").args
            return [model.model, clip.cond_stage_model, vae.first_stage_model]

        return measure(load)


def child(options: argparse.Namespace, path: Path, layout: str, way: str) -> dict:
    command = [sys.executable, __file__, "--child", way, "--layout", layout, "--path", str(path), "--comfyui", str(options.comfyui)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="small-music")
    parser.add_argument("--comfyui", type=Path, default=default_comfyui(ROOT), help="a ComfyUI tree (else the one of run.py)")
    for name in ("--child", "--layout", "--path"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        path, autoencoder = Path(options.path), options.layout == "same"
        found = through_core(path, autoencoder) if options.child == "core" else through_nodes(path, autoencoder, options.comfyui)
        print(json.dumps(found))
        return 0
    from benchmarks.make_release import LAYOUTS, make_release

    print("| layout | through | seconds | weights, MB | extra at peak, MB | beyond the weights, MB |\n|---|---|---:|---:|---:|---:|")
    worst = 0.0
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            path = make_release(options.release, Path(folder) / "model", layout=layout)
            for way in ("core", "nodes"):
                found = child(options, path, layout, way)
                beyond = found["extra"] - found["weights"]
                worst = max(worst, beyond)
                row = [layout, way, f"{found['seconds']:.1f}", *(f"{found[key] / 1e6:.0f}" for key in ("weights", "extra"))]
                print(f"| {' | '.join(row)} | {beyond / 1e6:.0f} |", flush=True)
    return worst > LIMIT


if __name__ == "__main__":
    sys.exit(main())
