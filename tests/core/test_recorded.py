"""Every recorded case of the public code: one forward of each module, whole runs, schedules, samplers."""

import json

import pytest
import torch
from core_support import DATA, FAMILIES, RELEASES, VARIANTS, index, needs_onednn, recorded, rel_error, release_dict
from recorded_cases import GUIDANCE, SAME, regions_of, run_arguments

import sa3_core
from sa3_core import timeline
from sa3_core.backends import cpu, device, mps
from sa3_core.backends.mps import MPS
from sa3_core.models.dit import Layer
from sa3_core.sampling import samplers, schedule

MODULE, RUN, FUNCTION = 1e-5, 1e-4, 1e-6
FOURIER = 1e-4  # the last bit of a frequency is the processor's: up to 1.2e-5 where it has AVX2; another order of the product gives 4e-3
RUNS = [(variant, case, "plain") for variant in VARIANTS for case in index()[variant]["cases"]]
RUNS += [(variant, case, way) for variant, case in (("small", "gen.t2a_batch.pingpong"), ("medium-base", "gen.t2a_batch.dpmpp")) for way in
         ("traced", "MPS", "oneDNN")]  # fmt: skip
RUNS = [pytest.param(*run, id="-".join(run), marks=needs_onednn if run[2] == "oneDNN" else ()) for run in RUNS]
SCHEDULES = json.loads((DATA / "schedules.json").read_text())
SAMPLERS = json.loads((DATA / "samplers.json").read_text())


@pytest.fixture
def golden(variant):
    return recorded(f"{variant}/golden")


@pytest.fixture
def way(model, monkeypatch, request):
    """One of the ways through the networks; all have to give what was recorded."""
    onednn = request.param == "oneDNN"
    product, calls = cpu.onednn_linear, []
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: onednn)
    monkeypatch.setattr(cpu, "onednn_linear", lambda *args: calls.append(args) or product(*args))
    if request.param == "MPS":
        monkeypatch.setitem(device.BACKENDS, "cpu", MPS())
        monkeypatch.setattr(mps, "QUERIES", 16)
    elif request.param == "traced":
        monkeypatch.setattr(Layer, "forward", torch.compile(Layer.forward, backend="eager"))
        torch._dynamo.reset()
        counted = torch._dynamo.utils.counters["stats"]
        before = counted["unique_graphs"]
    yield
    assert bool(calls) is onednn
    assert request.param != "traced" or counted["unique_graphs"] > before


WAYS = ["plain", "MPS", pytest.param("oneDNN", marks=needs_onednn)]
ways = pytest.mark.parametrize("way", WAYS, indirect=True)


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_has_exactly_its_tensors(name):
    rows = (line.split("\t") for line in (DATA / "releases" / f"{name}.tsv").read_text().splitlines() if line)
    wanted = {row[0]: json.loads(row[1]) for row in rows if not row[0].endswith("inv_freq")}
    found = {key: list(tensor.shape) for key, tensor in sa3_core.build(release_dict(name), device="meta").state_dict().items()}
    assert found == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_conditioning(model, golden, variant):
    case = index()[variant]
    text = model.encode_text(case["prompts"])
    assert torch.equal(text.input_ids, golden["cond.prompt.input_ids"].long())
    assert torch.equal(text.mask, golden["cond.prompt.mask"].bool())
    assert rel_error(text.embeddings, golden["cond.prompt.embeds"]) < MODULE
    cond = model.condition(text, case["seconds"])
    assert rel_error(cond.cross_attn, golden["cond.cross_attn"]) < MODULE
    assert rel_error(cond.global_cond, golden["cond.global"]) < FOURIER
    assert rel_error(cond.global_cond[:, None], golden["cond.seconds.embeds"]) < FOURIER


def forward(model, golden, **options):
    return model.velocity(golden["dit.x"], golden["dit.t"], golden["dit.cross_attn"], golden["dit.global"], **options)


@ways
@pytest.mark.parametrize("variant", VARIANTS)
def test_velocity(model, way, golden, variant):
    local, mask = golden["dit.local_add"], golden["dit.padding_mask"].bool()
    assert rel_error(forward(model, golden, local_add=local), golden["dit.v"]) < MODULE
    assert rel_error(forward(model, golden), golden["dit.v.no_local"]) < MODULE
    padded = forward(model, golden, local_add=local, padding_mask=mask)
    assert rel_error(padded * mask[:, None], golden["dit.v.padded"] * mask[:, None]) < MODULE


@ways
@pytest.mark.parametrize("case", GUIDANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_guided_velocity(model, way, golden, variant, case):
    valid = torch.ones(1)
    options = dict(GUIDANCE[case])
    if case.endswith("padded"):
        options["padding_mask"] = golden["dit.padding_mask"].bool()
        valid = options["padding_mask"][:, None]
    if case.endswith("neg"):
        options["negative_cross_attn"] = golden["dit.negative_cross_attn"]
    v = forward(model, golden, local_add=golden["dit.local_add"], cfg=4.0, **options)
    assert rel_error(v * valid, golden[f"dit.v.{case}"] * valid) < MODULE


@ways
@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("variant", FAMILIES)
def test_autoencoder(model, way, golden, variant, case):
    direction, source, options = SAME[case]
    out = getattr(model, direction)(golden[f"same.{source}"].float(), **options)
    out = out[..., ::37] if case.startswith("decode_long") else out
    assert rel_error(out, golden[f"same.{case}"]) < MODULE


@pytest.mark.parametrize(("variant", "key", "way"), RUNS, indirect=["way"])
def test_whole_run(model, way, golden, variant, key):
    case = index()[variant]["cases"][key]
    z = model.generate(**run_arguments(case, key, golden, model.config.schedule)).latents
    assert z.shape[-1] == case["latent_length"]
    for i, valid in enumerate(case["valid_lengths"]):
        assert rel_error(z[i, :, :valid], golden[f"{key}.latents"][i, :, :valid]) < RUN


@pytest.mark.parametrize("key", ["gen.inpaint", "gen.continue"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_mask_and_masked_latents(model, golden, variant, key):
    case, local, source = index()[variant]["cases"][key], golden[f"{key}.local_add_cond"], golden["gen.source_audio"][None]
    lengths = timeline.lengths(model.config, [case["duration"]])
    mask = timeline.keep_mask(model.config, regions_of(case), lengths)
    assert torch.equal(mask, local[:, :1])
    n = lengths.frames * 4096
    z = model.encode(torch.nn.functional.pad(source[..., :n], (0, max(0, n - source.shape[-1]))), chunk_size=128)
    assert rel_error(mask * z, local[:, 1:]) < MODULE


@pytest.mark.parametrize("case", SCHEDULES, ids=[f"{c['key']}-{c['shift']}-{c['mode']}" for c in SCHEDULES])
def test_schedule(case):
    length = torch.tensor(case["seq_len"]) if isinstance(case["seq_len"], list) else case["seq_len"]
    found = schedule.build(case["type"], case["steps"], case["sigma_max"], length, case["mode"], **case["params"])
    wanted = recorded("schedules")[case["key"]]
    assert found.shape[-1] == wanted.shape[-1] == case["steps"] + 1
    assert float((found - wanted).abs().max()) < FUNCTION


@pytest.mark.parametrize("case", SAMPLERS, ids=[case["key"] for case in SAMPLERS])
def test_sampler(case):
    data = recorded("samplers")

    def velocity(x, t):
        return torch.tanh(torch.einsum("ij,bjl->bil", data["A"], x) + data["b"] * torch.sin(3 * t)[:, None, None])

    eta = case["eta"] if case["sampler"].endswith("sde") else None
    out = samplers.sample(case["sampler"], velocity, data["x"], data[case["sigmas"]], list(data["step_noise"]), eta)
    assert out.dtype == torch.float64
    assert rel_error(out, data[case["key"]]) < FUNCTION
