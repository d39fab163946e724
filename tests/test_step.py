"""What makes a step faster or smaller does not change what it computes."""

import copy

import pytest
import torch

from tests.conftest import load
from tests.test_csd_model import batch, model, step

SGD = {"train:optim_g": {"type": "SGD", "lr": 0.1}, "train:ema_decay": 0}


def after(*, seed=0, iterations=2, **changes):
    """Weights and last losses after some steps on the same batches."""
    torch.manual_seed(5)
    csd = model(**{**SGD, **changes})
    for i in range(1, iterations + 1):
        losses = step(csd, i, seed + i)
    return {name: p.detach().clone() for name, p in csd.net_g.named_parameters()}, losses


def assert_same(a, b, rtol=1e-4, atol=1e-6):
    for name in a[0]:
        torch.testing.assert_close(a[0][name], b[0][name], rtol=rtol, atol=atol, msg=name)
    assert a[1] == pytest.approx(b[1], rel=rtol)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network_g:width": [0.25, 0.5]},
        {"train:contrastive_opt:detach_positive": False},
        {"train:positive": "gt", "train:negatives": {"num": 0}},
        {"train:negatives": {"source": "pool", "num": 6}},
        {"train:contrastive_opt": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_what_it_gives_as_a_whole(changes, parts):
    whole = after(**changes)
    assert_same(whole, after(**changes, **{"train:accumulate": parts}))
    assert not torch.equal(whole[0]["conv_first.weight"], after(iterations=1, **changes)[0]["conv_first.weight"])


def test_the_vgg_sees_the_negatives_of_a_batch_in_parts_once():
    csd = model(**{"train:accumulate": 2})
    seen = []
    csd.cri_contrast.vgg.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    step(csd)
    assert seen == [3, *[2] * 8]  # 2 + 1 negatives; then teacher and student of two parts, without and with a graph


def test_stochastic_depth_is_the_same_in_both_passes_over_the_parts():
    from tests.backbones import tiny

    csd = model(**{"network_g:backbone": {**tiny("SwinIR"), "drop_path_rate": 0.5}, "train:accumulate": 2})
    seen = []
    forward = csd._forward_all
    csd._forward_all = lambda *a, **k: seen.append(forward(*a, **k)) or seen[-1]
    step(csd)
    assert len(seen) == 4
    for first, again in ((seen[0], seen[2]), (seen[1], seen[3])):
        torch.testing.assert_close(first.teacher, again.teacher.detach())


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divides by accumulate 3, got 4"):
        step(model(**{"train:accumulate": 3}))


def test_memory_layout_changes_nothing():
    assert model().net_g.conv_first.weight.is_contiguous(memory_format=torch.channels_last)
    plain = model(**{"train:channels_last": False})
    assert plain.net_g.conv_first.weight.is_contiguous()
    assert_same(after(), after(**{"train:channels_last": False}))


def test_gradients_are_clipped():
    csd = model(**{**SGD, "train:clip_grad_norm": 1e-3})
    step(csd)
    norm = torch.stack([p.grad.norm() for p in csd.net_g.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_contrast_in_every_third_step_is_three_times_as_strong():
    csd, every = model(**{"train:contrast_every": 3, **SGD}), model(**SGD)
    every.net_g.load_state_dict(csd.net_g.state_dict())
    for iteration in (1, 2):
        assert "l_contrast" not in step(copy.copy(csd), iteration)
    every.net_g.load_state_dict(csd.net_g.state_dict())
    assert step(csd, 3)["l_contrast"] == pytest.approx(3 * step(every, 3)["l_contrast"], rel=1e-5)


def test_the_contrast_on_a_crop_compares_the_same_place_everywhere():
    csd = model(**{"train:contrast_crop": 8})
    csd.feed_data(batch())
    places = torch.arange(64.0).view(1, 1, 8, 8)
    csd.lq = places
    enlarged = places.repeat_interleave(2, 2).repeat_interleave(2, 3)
    seen = set()
    for iteration in range(1, 40):
        low, high = csd._contrast_images(places, iteration), csd._contrast_images(enlarged, iteration)
        assert low.shape[-2:] == (4, 4) and high.shape[-2:] == (8, 8)
        assert torch.equal(high[..., ::2, ::2], low)
        seen.add(float(low[0, 0, 0, 0]))
    assert len(seen) > 10
    shapes = []
    csd.cri_contrast.vgg.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    step(csd)
    assert {shape[2:] for shape in shapes} == {(8, 8)}


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_stays_close(amp, dtype):
    seen = []
    csd = model(**{**SGD, "train:amp": amp})
    csd.cri_contrast.vgg.register_forward_hook(lambda *args: seen.append(args[-1]["relu1_1"].dtype))
    step(csd)
    assert set(seen) == {dtype}
    assert all(p.dtype == torch.float32 for p in csd.net_g.parameters())
    exact, mixed = after(iterations=1), after(iterations=1, **{"train:amp": amp})
    assert mixed[1] == pytest.approx(exact[1], rel=0.05)
    for name in exact[0]:
        torch.testing.assert_close(mixed[0][name], exact[0][name], rtol=0.05, atol=2e-3)


def test_yaml_reads_an_unquoted_off_as_false():
    assert model(**{"train:amp": False}).train_options.amp == "off"


def test_an_overflow_costs_a_step_and_no_weights(monkeypatch):
    csd = model(**{**SGD, "train:amp": "fp16"})
    before = {name: p.detach().clone() for name, p in csd.net_g.named_parameters()}
    scale = csd.scaler.get_scale()
    losses = csd._losses
    monkeypatch.setattr(csd, "_losses", lambda *a: {k: v * float("inf") for k, v in losses(*a).items()})
    step(csd)
    assert all(torch.equal(p, before[name]) for name, p in csd.net_g.named_parameters())
    assert csd.scaler.get_scale() == scale / 2


def test_the_scale_of_float16_survives_a_resume(tmp_path):
    csd = model(**{"train:amp": "fp16"})
    step(csd)
    csd.scaler.update(8.0)
    (tmp_path / "states").mkdir()
    csd.save_training_state(0, 1)
    again = model(**{"train:amp": "fp16"})
    again.resume_training(load(tmp_path / "states/1.state"))
    assert again.scaler.get_scale() == 8.0


def test_optimizers_are_fused_unless_told_otherwise():
    assert model().optimizer_g.defaults["fused"] is True
    told = {"type": "Adam", "lr": 1e-3, "foreach": False}
    assert not model(**{"train:optim_g": told}).optimizer_g.defaults["fused"]
