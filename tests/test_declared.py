import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from csd_plugin import BackboneSpec, ChannelMapError, CSSRNet, OptionError, register_backbone
from csd_plugin.slicing.widths import BACKBONES

OPTIONS = {"type": "Untraceable", "base": 8}
ARGUMENTS = {"width_args": ["base"]}
DECLARED = {"fuse.*": {1: [8, 8, "=3"]}}


class Untraceable(nn.Module):
    """Reads a concatenation behind an operation that has no rule."""

    def __init__(self, base=8):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, base, 3, padding=1), nn.Conv2d(3, base, 3, padding=1)
        self.fuse = nn.Conv2d(2 * base + 3, 3, 1, bias=False)

    def forward(self, x):
        return self.fuse(torch.cat([self.a(x).cumsum(2), self.b(x), x], 1))


@pytest.fixture(autouse=True)
def registered():
    ARCH_REGISTRY._obj_map["Untraceable"] = Untraceable
    yield
    del ARCH_REGISTRY._obj_map["Untraceable"]
    BACKBONES.pop("Untraceable", None)


def test_the_operation_is_named():
    with pytest.raises(ChannelMapError, match=r"operation \d+ \(aten::cumsum\) on .*: no rule"):
        CSSRNet(OPTIONS, 0.5, **ARGUMENTS)


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_a_declared_map_is_proved_and_used(width):
    net = CSSRNet(OPTIONS, width, **ARGUMENTS, channel_map=DECLARED).eval()
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(net(x), net.export(width)(x), atol=1e-6, rtol=0)
    n = int(8 * width)
    expected = [*range(n), *range(8, 8 + n), 16, 17, 18]
    assert torch.equal(net.export(width).fuse.weight, net.teacher.fuse.weight[:, expected])


def test_a_wrong_declaration_is_refused_by_the_proof():
    with pytest.raises(ChannelMapError, match="Untraceable: the student cannot be proved"):
        CSSRNet(OPTIONS, 0.5, **ARGUMENTS, channel_map={"fuse.weight": {1: [16, "=3"]}})


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"fuse.weigth": {1: [8, 8, "=3"]}}, "no parameter is named fuse.weigth; did you mean 'fuse.weight'"),
        ({"fuse.weight": {1: [8, 8]}}, r"\[8, 8\] does not make up axis 1 of fuse.weight"),
        ({"fuse.weight": {7: [8]}}, "axis 7"),
        ({"fuse.weight": {1: [8, 8, "3"]}}, "expected a number of channels or a text such as =3, got '3'"),
        ({"fuse.weight": {1: [8, 8, "=4"]}}, "does not make up"),
    ],
)
def test_declarations_that_do_not_fit_are_named(declaration, message):
    with pytest.raises(OptionError, match=message):
        CSSRNet(OPTIONS, 0.5, **ARGUMENTS, channel_map=declaration)


def test_a_declared_map_has_no_order():
    net = CSSRNet(OPTIONS, 0.5, **ARGUMENTS, channel_map=DECLARED)
    with pytest.raises(OptionError, match="cannot be ordered"):
        net.importance_order()


def test_a_backbone_can_be_made_known_from_code():
    register_backbone("Untraceable", BackboneSpec(("base",)))
    register_backbone("Untraceable", BackboneSpec(("base",)))
    CSSRNet(OPTIONS, 0.5, channel_map=DECLARED)
    with pytest.raises(KeyError, match="Untraceable has another spec already"):
        register_backbone("Untraceable", BackboneSpec(("depth",)))
