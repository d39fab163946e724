"""Backbones with batch normalisation: each width keeps its own statistics and affine parameters."""

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from csd_plugin import CSSRNet
from csd_plugin.slicing.widths import build_backbone
from tests.conftest import base_options, load, train
from tests.test_csd_model import batch, model

OPTIONS = {"type": "NormedResNet", "base": 8}


class NormedResNet(nn.Module):
    """SRResNet in small: residual blocks with batch normalisation, PixelShuffle."""

    def __init__(self, base=8):
        super().__init__()
        self.head = nn.Conv2d(3, base, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(base, base, 3, padding=1), nn.BatchNorm2d(base), nn.PReLU(), nn.Conv2d(base, base, 1)
        )
        self.norm = nn.BatchNorm2d(base)
        self.tail = nn.Sequential(nn.Conv2d(base, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        x = self.head(x)
        return self.tail(x + self.norm(self.block(x)))


@pytest.fixture(autouse=True)
def registered():
    ARCH_REGISTRY._obj_map["NormedResNet"] = NormedResNet
    yield
    del ARCH_REGISTRY._obj_map["NormedResNet"]


def network(width=0.5):
    return CSSRNet(OPTIONS, width, width_args=["base"])


def statistics(norm):
    return torch.cat([norm.running_mean, norm.running_var])


@pytest.mark.parametrize("width", [0.5, [0.25, 0.5]])
def test_slice_equals_export_with_statistics_of_its_own(width):
    net = network(width).train()
    for _ in range(3):
        net(torch.rand(4, 3, 8, 8))
    net.eval()
    x = torch.rand(1, 3, 8, 8)
    for w in net.widths:
        exported = net.export(w)
        build_backbone({**OPTIONS, "base": int(8 * w)}).load_state_dict(exported.state_dict(), strict=True)
        torch.testing.assert_close(net(x, width=w), exported(x), atol=1e-6, rtol=0)
        assert not torch.allclose(
            statistics(exported.norm), statistics(net.teacher.norm)[: 2 * exported.norm.num_features]
        )


def test_one_width_leaves_the_statistics_of_the_others_alone():
    net = network().train()
    before = statistics(net.teacher.norm).clone()
    net(torch.rand(4, 3, 8, 8), width=0.5)
    assert torch.equal(statistics(net.teacher.norm), before)
    own = statistics(net.export(0.5).norm)
    net(torch.rand(4, 3, 8, 8), width=1.0)
    assert not torch.equal(statistics(net.teacher.norm), before)
    assert torch.equal(statistics(net.export(0.5).norm), own)


def test_full_width_is_the_stock_network():
    net = network().eval()
    stock = build_backbone(OPTIONS).eval()
    stock.load_state_dict(
        {k: v for k, v in net.state_dict().items() if not k.startswith("student_norms.")}, strict=True
    )
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(net(x, width=1.0), stock(x))


def test_a_stock_checkpoint_initialises_the_students_norms():
    stock = build_backbone(OPTIONS).train()
    with torch.no_grad():
        stock.norm.weight.uniform_(0.5, 2)
    stock(torch.rand(4, 3, 8, 8))
    net = network()
    net.load_state_dict(stock.state_dict(), strict=True)
    exported = net.export(0.5)
    assert torch.equal(exported.norm.weight, stock.norm.weight[:4])
    assert torch.equal(exported.norm.running_mean, stock.norm.running_mean[:4])
    net.student_norms["0-5"]["norm"].weight.data.zero_()
    again = network()
    again.load_state_dict(net.state_dict(), strict=True)
    assert not again.export(0.5).norm.weight.any()


def test_the_students_affine_parameters_are_trained_and_averaged():
    csd = model(**{"network_g:backbone": dict(OPTIONS), "network_g:width_args": ["base"]})
    before = csd.net_g.export(0.5).norm.weight.clone()
    csd.feed_data(batch())
    csd.optimize_parameters(1)
    assert not torch.equal(csd.net_g.export(0.5).norm.weight, before)
    for average, buffer in zip(csd.net_g_ema.buffers(), csd.net_g.buffers(), strict=True):
        assert torch.equal(average, buffer)


def test_training_saves_resumes_and_exports(pairs, tmp_path):
    options = base_options(**{"network_g:backbone": dict(OPTIONS), "network_g:width_args": ["base"]})
    torch.save({"params": build_backbone(OPTIONS).state_dict()}, tmp_path / "stock.pth")
    options["path"]["pretrain_network_g"] = "stock.pth"
    assert train(options) == 0
    options["train"]["total_iter"] = 6
    assert train(options, "--auto_resume") == 0
    student = load(tmp_path / "experiments/tiny/models/net_g_student_6.pth")
    for key in ("params", "params_ema"):
        build_backbone({**OPTIONS, "base": 4}).load_state_dict(student[key], strict=True)


def test_ordering_the_channels_takes_the_norms_along():
    net = network().eval()
    with torch.no_grad():
        for parameter in net.teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = torch.rand(1, 3, 8, 8)
    before = net(x, width=1.0)
    net.permute_channels(net.importance_order())
    torch.testing.assert_close(net(x, width=1.0), before)
    assert torch.equal(net.export(0.5).norm.weight, net.teacher.norm.weight[:4])
