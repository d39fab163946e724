import copy

import numpy as np
import pytest
import torch

from csd_plugin import CSSRNet
from csd_plugin.evaluation.complexity import count_macs, count_parameters
from csd_plugin.slicing.widths import build_backbone
from tests.backbones import IMAGE_BACKBONES, SCALABLE, VIDEO_BACKBONES, tiny

EVERY = pytest.mark.parametrize("name", [*IMAGE_BACKBONES, *VIDEO_BACKBONES])


def _width(name):
    return 0.5 if name in ("ECBSR", "RIDNet", "BasicVSRPlusPlus") else 0.25


@pytest.fixture(autouse=True)
def alignment(request, monkeypatch):
    """BasicSR leaves the deformable alignment of BasicVSR++ out where it finds no CUDA; it runs on the CPU, too."""
    if "name" in request.fixturenames and request.getfixturevalue("name") == "BasicVSRPlusPlus":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def some_input(net, images=1):
    """Images or clips of the smallest size; a clip of BasicVSR takes a second."""
    (x,) = net.example_inputs()
    return x.expand(images, *x.shape[1:]).contiguous() if x.dim() == 4 else x


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["BasicVSR", "EDVR"])
def test_slice_equals_export_in_video_networks(name, width):
    net = CSSRNet(tiny(name), width).eval()
    (clip,) = net.example_inputs()
    torch.testing.assert_close(net(clip, width=width), net.export(width)(clip), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_every_student_is_its_export_in_the_teacher(name, scale, width):
    torch.manual_seed(3)
    stock = build_backbone(tiny(name, scale)).eval()
    torch.manual_seed(3)
    net = CSSRNet(tiny(name, scale), width).eval()
    exported = net.export(width)
    x = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(net(x, width=1.0), stock(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(net(x, width=width), exported(x), atol=1e-6, rtol=0)
    narrow = build_backbone(net.stock_options(width)).eval()
    narrow.load_state_dict(exported.state_dict(), strict=True)
    torch.testing.assert_close(narrow(x), exported(x))
    check_gradients(net, exported, x)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_every_backbone_in_both_modes(name, training):
    options = tiny(name) | ({"drop_path_rate": 0.0} if name == "SwinIR" else {})
    torch.manual_seed(3)
    stock = build_backbone(options).train(training)
    torch.manual_seed(3)
    net = CSSRNet(options, _width(name)).train(training)
    x = some_input(net)
    torch.testing.assert_close(net(x, width=1.0), stock(x), atol=1e-6, rtol=0)
    exported = net.export(_width(name))
    assert exported.training is training
    torch.testing.assert_close(net(x, width=_width(name)), exported(x), atol=1e-6, rtol=0)


@EVERY
def test_construction_consumes_the_random_numbers_of_the_stock_backbone(name):
    torch.manual_seed(5)
    build_backbone(tiny(name))
    after_stock = torch.rand(4)
    torch.manual_seed(5)
    CSSRNet(tiny(name), _width(name))
    assert torch.equal(torch.rand(4), after_stock)


@EVERY
def test_state_dict_is_the_stock_one(name):
    net, stock = CSSRNet(tiny(name), _width(name)), build_backbone(tiny(name))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in stock.named_parameters()]
    net.load_state_dict(stock.state_dict(), strict=True)
    x = some_input(net)
    torch.testing.assert_close(net.eval()(x, width=1.0), stock.eval()(x))
    stock.load_state_dict(net.state_dict(), strict=True)


@EVERY
def test_the_student_moves_its_slice_as_the_stock_network_would_and_nothing_else(name):
    net = CSSRNet(tiny(name), 0.5).eval()
    check_gradients(net, net.export(0.5), some_input(net, 4))


def check_gradients(net, exported, x):
    (width,) = net.widths
    net(x, width=width).square().mean().backward()
    exported(x).square().mean().backward()
    assert any(p.grad.any() for p in net.parameters() if p.requires_grad)
    for (parameter_name, parameter), narrow in zip(net.named_parameters(), exported.parameters(), strict=True):
        if not parameter.requires_grad:
            continue
        if narrow.grad is None:
            assert parameter.grad is None, parameter_name
            continue
        channels = net._students[width][1].channels[parameter_name]
        inside = torch.zeros(parameter.shape, dtype=torch.bool)
        inside[np.ix_(*channels)] = True
        assert not parameter.grad[~inside].any(), parameter_name
        torch.testing.assert_close(parameter.grad[inside].view(narrow.shape), narrow.grad)


@EVERY
def test_the_teacher_moves_every_parameter(name):
    net = CSSRNet(tiny(name), _width(name)).train(name != "SwinIR")  # whose training drops whole blocks
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-2)  # offsets of deformable convolutions start at zero
    net(some_input(net, 4), width=1.0).square().mean().backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and not p.grad.any()]


def test_modes_decide_what_a_plain_forward_returns():
    net = CSSRNet(tiny("EDSR"), [0.25, 0.5])
    x = torch.rand(1, 3, 6, 6)
    outputs = net.train()(x)
    assert list(outputs) == [1.0, 0.25, 0.5]
    torch.testing.assert_close(net.eval()(x), outputs[0.25])


def test_chosen_widths_and_detached_ones():
    net = CSSRNet(tiny("EDSR"), [0.25, 0.5])
    outputs = net(torch.rand(1, 3, 6, 6), width=[1.0, 0.5], detach=[1.0])
    assert list(outputs) == [1.0, 0.5]
    assert not outputs[1.0].requires_grad
    assert outputs[0.5].requires_grad
    with pytest.raises(ValueError, match=r"expected one of the widths \(1.0, 0.25, 0.5\), got 0.75"):
        net(torch.rand(1, 3, 6, 6), width=0.75)
    with pytest.raises(ValueError, match="got 0.75"):
        net.export(0.75)


def test_export_is_independent():
    net = CSSRNet(tiny("EDSR"), 0.5).eval()
    exported = net.export(0.5)
    before = net(torch.ones(1, 3, 6, 6))
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    torch.testing.assert_close(net(torch.ones(1, 3, 6, 6)), before)


def test_a_deep_copy_has_weights_of_its_own():
    net = CSSRNet(tiny("ECBSR"), 0.5).eval()
    twin = copy.deepcopy(net)
    x = torch.rand(1, 3, 6, 6)
    before = twin(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), before)
    assert not torch.allclose(net(x), before)
    twin.train().double()
    assert twin(x.double(), width=0.5).dtype == torch.float64


def test_published_parameter_and_mac_counts():
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 256, "num_block": 32, "res_scale": 0.1}
    net = CSSRNet(edsr, [0.25, 0.5])
    counts = [count_parameters(net.export(width)) for width in (1.0, 0.5, 0.25)]
    assert counts == [43_089_923, 10_780_675, 2_699_267]
    small = build_backbone({**edsr, "num_feat": 64, "num_block": 16})
    assert count_macs(small, (3, 180, 320)) == 114_230_476_800


def test_published_counts_of_rcan():
    rcan = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_group": 10, "num_block": 20}
    net = CSSRNet(rcan, [0.25, 0.5])
    assert [count_parameters(net.export(w)) for w in (1.0, 0.5, 0.25)] == [15_592_355, 3_909_075, 982_763]
