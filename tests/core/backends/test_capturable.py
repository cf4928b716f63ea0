"""A step of a run, guidance included, is one function of its tensors: no value is read on the host and no shape depends on one."""

import pytest
import torch
from core_support import FAMILIES, randn, rel_error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sa3_core.backends.graphs import tensors_of, with_tensors
from sa3_core.models.conditions import Conditions
from sa3_core.sampling.guidance import Guidance

FRAMES = 20
GUIDANCE = Guidance(cfg=3.0, apg=0.5, rescale=0.3, norm_threshold=2.0)
RUNS = {"one item": (1, None, False), "two lengths, guided": (2, [FRAMES, 13], True)}  # items, lengths, guided


class Step(nn.Module):
    """Velocity of x (B, C, T) from the Fourier features of its times and the tensors of its conditions, as a CUDA graph has them."""

    def __init__(self, dit: nn.Module, conditions: Conditions, t: Tensor, lengths: list[int] | None, guided: bool):
        super().__init__()
        self.dit, self.conditions, self.lengths, self.guided = dit, conditions, lengths, guided
        self.register_buffer("t", t)

    def forward(self, x: Tensor, features: Tensor, tensors: list[Tensor]) -> Tensor:
        conditions = with_tensors(self.conditions, tensors)
        items = torch.cat((x, x)) if self.guided else x
        v = self.dit.step(items, self.dit.modulation_of(features, conditions), conditions)
        return GUIDANCE.combine(x, self.t, *v.chunk(2), self.lengths) if self.guided else v


def step_and_inputs(model, items: int, lengths: list[int] | None, guided: bool) -> tuple[Step, tuple]:
    config, dit = model.config, model.dit
    local = randn(items, config.dit.local_dim, FRAMES, seed=4)
    context, seconds = randn(items, 9, config.conditioning.cond_dim, seed=1), randn(items, config.conditioning.cond_dim, seed=2)
    with torch.no_grad():
        conditions = dit.prepare(context, seconds, local, FRAMES, lengths)
        if guided:
            conditions = Conditions.join([conditions, dit.prepare(torch.zeros_like(context), seconds, conditions.local, FRAMES, lengths)])
    t = torch.full((items,), 0.6)
    features = dit.time_features(torch.cat((t, t)) if guided else t, conditions)
    x = randn(items, config.same.latent_dim, FRAMES, seed=3)
    return Step(dit, conditions, t, lengths, guided), (x, features, tensors_of(conditions))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("variant", FAMILIES)
@torch.no_grad()
def test_a_step_runs_on_tensors_without_values(model, run):
    step, inputs = step_and_inputs(model, *RUNS[run])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = step(*torch.utils._pytree.tree_map(mode.from_tensor, inputs))
    assert out.shape == inputs[0].shape


@pytest.mark.parametrize("variant", FAMILIES)
@torch.no_grad()
def test_a_step_is_exported_whole(model):
    step, inputs = step_and_inputs(model, *RUNS["two lengths, guided"])
    exported = torch.export.export(step, inputs, strict=False).module()
    others = torch.utils._pytree.tree_map(lambda part: part * 0.9 if part.is_floating_point() else part, inputs)
    for given in (inputs, others):
        assert rel_error(exported(*given), step(*given)) < 1e-6


def test_a_value_that_is_read_would_be_noticed():
    with FakeTensorMode() as mode, pytest.raises(DataDependentOutputException):
        bool(mode.from_tensor(torch.ones(1)) > 0)
