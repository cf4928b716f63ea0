"""A 16-bit stage that is not finite is computed once more in float32; if that is not finite either, an error names the stage."""

import pytest
import torch
from core_support import refused

import sa3_core
from sa3_core.sampling.float32_retry import with_float32_retry

INF = torch.tensor([1.0, torch.inf])


def stage(results):
    """compute(dtype) that gives these in turn, and what it was called with."""
    asked, results = [], list(results)

    def compute(dtype):
        asked.append(dtype)
        return results.pop(0)

    return compute, asked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_tried_once_more_in_float32(dtype):
    compute, asked = stage([INF, torch.ones(2)])
    said = []
    assert torch.equal(with_float32_retry("The latents", dtype, compute, said.append), torch.ones(2))
    assert asked == [dtype, torch.float32] and len(said) == 1 and "float32" in said[0] and str(dtype)[6:] in said[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_finite_values_are_computed_once(dtype):
    compute, asked = stage([torch.ones(2)])
    said = []
    with_float32_retry("The latents", dtype, compute, said.append)
    assert asked == [dtype] and said == []


@pytest.mark.parametrize(("dtype", "tries"), [(torch.float16, 2), (torch.float32, 1)])
def test_the_stage_is_named_when_float32_is_not_finite(dtype, tries):
    compute, asked = stage([INF * torch.nan, INF])
    with refused("The latents", "NaN"):
        with_float32_retry("The latents", dtype, compute, lambda sentence: None)
    assert len(asked) == tries


@pytest.fixture
def overflowing(release):
    """A model in float16, one of whose weights makes its activations leave that type."""
    model = sa3_core.load(release("small"), dtype=torch.float16)
    assert model.text_encoder.model.dtype == torch.float32  # never float16
    return model


@pytest.mark.parametrize("part", ["The latents", "The decoded samples"])
def test_a_run_that_overflows_is_repeated_and_recorded(overflowing, part):
    model = overflowing
    blocks = model.dit.transformer.layers if part == "The latents" else model.autoencoder.decoder.layers[3].transformers
    for block in blocks:  # each adds this to the residual stream
        torch.nn.init.constant_(block.ff.ff[2].bias, 6e4)
    done = model.generate("rain", 1.0, seed=1, steps=2)
    assert torch.isfinite(done.audio[0]).all()
    assert [sentence for sentence in done.info["warnings"] if sentence.startswith(part)], done.info["warnings"]
