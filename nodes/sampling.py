"""Nodes that sample."""

import json

from ..sa3_core import sampling
from ..sa3_core.guidance import Guidance
from ..sa3_core.samplers import SAMPLERS
from .host import model as host_model
from .host import sampling as host
from .host.schema import SEED, io, schema


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Sampler",
            display_name="SA3 Sampler",
            description="Samples Stable Audio 3 latents as the reference does: its schedule, its samplers, its guidance, exact padding.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader."),
                io.Conditioning.Input("positive", tooltip="The prompt, from SA3 Text Encode."),
                io.Latent.Input("latent", tooltip="What to fill: SA3 Empty Latent for text to audio. Its duration conditions the model."),
                io.Int.Input("seed", default=0, **SEED, tooltip="Same seed and settings, same sound, on every device and in every batch."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps. 0 = the checkpoint's own: 8 for post-trained models, 50 for -base.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=["auto", *SAMPLERS],
                    default="auto",
                    tooltip="auto = the checkpoint's own: pingpong for post-trained models, euler for -base.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance scale. 0 = the checkpoint's own: 1 (off) for post-trained models, 7 for -base.",
                ),
                io.Float.Input(
                    "noise_level",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 = make anew. Below 1 the LATENT's sound is kept in part: 0.9 loose, 0.1 a close variation.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="What to avoid; acts only with cfg other than 1."),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("run_info")],
        )

    @classmethod
    def execute(cls, model, positive, latent, seed, steps, sampler, cfg, noise_level, negative=None) -> io.NodeOutput:
        inner = host_model.require(model)
        config = inner.sa3_config
        read = host.read_latent(latent, config)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if conditioning is not None:
                host.check_conditioning(conditioning, config, len(read.lengths), name)
        plan = sampling.plan(
            config, read.lengths, steps=steps or None, sampler=sampler, seed=seed, noise_level=noise_level, indices=read.indices
        )
        guidance = Guidance(cfg or config.default_cfg)
        samples = host.sample(model, positive, read, plan, guidance, negative)
        out = {**latent, "samples": samples, "type": "audio"}
        info = {
            "model": inner.sa3_name, "seed": seed, "steps": plan.steps, "sampler": plan.sampler, "cfg": guidance.cfg,
            "seconds": list(read.lengths.seconds), "sigmas": [round(s, 6) for s in plan.sigmas[0].tolist()],
        }  # fmt: skip
        return io.NodeOutput(out, json.dumps(info))


NODES = [Sampler]
