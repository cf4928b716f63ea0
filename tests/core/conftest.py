"""Fixtures of the core tests: no ComfyUI, no network. The repository root is found from here, whatever the import mode."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Behind everything else: the root also holds `nodes`, a name that ComfyUI's own modules use.
sys.path.extend(str(path) for path in (HERE.parents[1], HERE) if str(path) not in sys.path)

import core_support
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported: its kernels then run on a CPU

import sa3_core


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and on a busy machine threads that wait for each other lose minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def release(tmp_path: Path) -> Callable[[str], Path]:
    """release(variant): the folder of a tiny release that the test may damage."""
    return lambda variant: core_support.lay_out(tmp_path / variant, variant)


@pytest.fixture(scope="session")
def load_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "sa3_core.Model"]:
    """load_model(variant): a tiny model in float32, loaded once and shared; tests leave its weights alone."""
    models = {}

    def load(variant: str) -> "sa3_core.Model":
        if variant not in models:
            models[variant] = sa3_core.load(core_support.lay_out(tmp_path_factory.mktemp("release") / variant, variant))
        return models[variant]

    return load


@pytest.fixture
def model(load_model, variant: str) -> "sa3_core.Model":
    """The model of a test's `variant` parameter."""
    return load_model(variant)
