"""On a GPU a step gives what it gives on the CPU; without one there is nothing to compare."""

import pytest
import torch

from tests.test_step import after, assert_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def on_gpu(**changes):
    weights, losses = after(num_gpu=1, **changes)
    return {name: weight.cpu() for name, weight in weights.items()}, losses


@pytest.mark.parametrize(
    "changes",
    [{}, {"train:accumulate": 2}, {"train:compile": True}, {"network_g:width": [0.25, 0.5]}],
    ids=str,
)
def test_a_step_is_the_one_of_the_cpu(changes):
    assert_same(after(**changes), on_gpu(**changes), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_close(amp):
    exact, mixed = after(iterations=1), on_gpu(iterations=1, **{"train:amp": amp})
    assert mixed[1] == pytest.approx(exact[1], rel=0.05)
    for name in exact[0]:
        torch.testing.assert_close(mixed[0][name], exact[0][name], rtol=0.05, atol=2e-3)
