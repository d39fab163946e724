import pytest
import torch
from torch import nn

from csd_plugin import ChannelMapError, CSSRNet, OptionError
from csd_plugin.archs.cssr_arch import _build, _image, _shapes
from csd_plugin.slicing.channel_map import ChannelMap, prefix_map
from csd_plugin.slicing.proof import prove
from csd_plugin.slicing.widths import backbone_options, narrow_options, scaled_channels
from tests.backbones import PREFIX_BACKBONES, tiny


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(64, 0.25, 16), (100, 0.29, 29), (64, 0.3, 19), (3, 0.25, 0), (180, 1 / 3, 60)]
)
def test_channels_are_rounded_down_but_not_by_float_error(channels, width, expected):
    assert scaled_channels(channels, width) == expected


def _networks(name, width=0.5, scale=2):
    options = backbone_options(tiny(name, scale))
    narrow = narrow_options(options, width)
    teacher, student = _build(options), _build(narrow)
    return teacher, student, prefix_map(name, _shapes(teacher), _shapes(student)), _image(options)


@pytest.mark.parametrize("name", PREFIX_BACKBONES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_prefix_slices_satisfy_the_embedding_invariant(name, scale):
    prove(name, *_networks(name, scale=scale))


@pytest.mark.parametrize("name", PREFIX_BACKBONES)
def test_a_map_shifted_by_one_channel_in_one_layer_is_caught(name):
    teacher, student, channel_map, image = _networks(name)
    inner = [key for key, index in channel_map.indices.items() if student.state_dict()[key].dim() == 4]
    key = next(k for k in inner[1:] if teacher.state_dict()[k].shape[1] > student.state_dict()[k].shape[1])
    out, into, *rest = channel_map.indices[key]
    shifted = {**channel_map.indices, key: (out, slice(into.start + 1, into.stop + 1), *rest)}
    with pytest.raises(ChannelMapError, match=f"{name}: .* gives another result"):
        prove(name, teacher, student, ChannelMap(shifted, channel_map.shapes), image)


def test_rrdbnet_is_refused_with_its_name_and_layer():
    options = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 4}
    with pytest.raises(ChannelMapError, match=r"RRDBNet: .*body\.0\.rdb1\.conv2 gives another result"):
        CSSRNet(options, 0.5)


def test_cross_channel_normalisation_is_refused_and_named():
    class Normed(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Conv2d(3, width, 1), nn.GroupNorm(1, width), nn.Conv2d(width, 3, 1))

    teacher, student = Normed(8), Normed(4)
    channel_map = prefix_map("Normed", _shapes(teacher), _shapes(student))
    with pytest.raises(ChannelMapError, match="1 gives another result .* normalises across channels"):
        prove("Normed", teacher, student, channel_map, torch.rand(1, 3, 8, 8, dtype=torch.float64))


def test_networks_with_other_layers_are_refused():
    wide, narrow = {"a.weight": torch.Size([4])}, {"b.weight": torch.Size([2])}
    with pytest.raises(ChannelMapError, match=r"Net: .*a\.weight"):
        prefix_map("Net", wide, narrow)
    with pytest.raises(ChannelMapError, match=r"a\.weight of shape \(8,\) is no slice of \(4,\)"):
        prefix_map("Net", wide, {"a.weight": torch.Size([8])})


def test_a_layer_without_channels_is_an_error_that_names_the_argument():
    rcan = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_group": 1, "num_block": 1}
    with pytest.raises(OptionError, match=r"num_feat: 8, which leaves 0 channels in .*squeeze_factor \(16\)"):
        CSSRNet(rcan, 0.25)
    with pytest.raises(OptionError, match=r"leaves EDSR num_feat: 8 without a channel"):
        CSSRNet(tiny("EDSR"), 0.1)


@pytest.mark.parametrize("width", [0, 1, 1.5, -0.5, "0.5", True, None, [], [0.5, 0.5], float("nan")])
def test_widths_outside_the_open_interval_are_refused(width):
    with pytest.raises(OptionError, match="network_g:width"):
        CSSRNet(tiny("EDSR"), width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_feats": 8}, "backbone:num_feats; did you mean 'num_feat'"),
        ({"type": "EDSSR"}, "'EDSSR' is registered; did you mean 'EDSR'"),
        ({"num_feat": "8"}, "positive channel count in num_feat, got '8'"),
    ],
)
def test_mistakes_in_the_backbone_are_named(change, message):
    with pytest.raises(OptionError, match=message):
        CSSRNet({**tiny("EDSR"), **change}, 0.5)


def test_backbones_without_a_known_width_need_it_named():
    options = {"type": "SpyNet"}
    with pytest.raises(OptionError, match="width argument of SpyNet is not known"):
        CSSRNet(options, 0.5)
    CSSRNet({**tiny("EDSR")}, 0.5, width_args=["num_feat"])
