"""The benchmarks measure what they say; how fast it is, is no test."""

from dataclasses import replace

import pytest
import torch

from benchmarks.growth import work
from benchmarks.negatives import broadcast, in_one_pass
from benchmarks.report import table
from benchmarks.step import EDSR, Setting, floor_passes, our_step, reference_step
from csd_plugin.evaluation.timing import Measurement, measure, peak_memory

TINY = Setting({**EDSR, "num_feat": 8, "num_block": 1}, hr=32, batch=2, negatives=2, widths=(0.5,))


def test_the_passes_of_the_floor_and_both_steps_run():
    passes = floor_passes(TINY)
    assert list(passes) == ["teacher", "student 0.5", "VGG, student 0.5", "VGG, teacher and negatives", "optimizer"]
    times = measure({"ours": our_step(TINY), "reference": reference_step(TINY), **passes}, rounds=2, warmup=0)
    assert all(time.median > 0 for time in times.values())


def test_peak_memory_counts_what_is_held_at_once():
    def run():
        a = torch.ones(2**20)
        b = a + 1
        del a
        return b * 2

    assert peak_memory(run) == pytest.approx(8, abs=0.1)


def test_counted_work_grows_by_the_vgg_with_each_negative():
    one, two, three = (work(replace(TINY, negatives=k)) for k in (1, 2, 3))
    assert three - two == two - one > 0


def test_ours_and_the_broadcast_agree():
    generator = torch.Generator().manual_seed(0)
    args = [torch.randn(n, 4, 8, 8, generator=generator) for n in (3, 3, 5)] + [torch.rand(3, 5, generator=generator)]
    args[0].requires_grad_()
    for ours, theirs in zip(in_one_pass(compiled=False)(*args), broadcast(*args), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        grads = (torch.autograd.grad(value, args[0], retain_graph=True)[0] for value in (ours, theirs))
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def test_tables_and_medians():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert Measurement((1.0, 2.0, 9.0)).median == 2
