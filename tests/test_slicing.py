import numpy as np
import pytest
import torch
from torch import nn

from csd_plugin import ChannelMapError, CSSRNet, OptionError
from csd_plugin.slicing.channel_map import ChannelMap, check_same_layers, first_channels
from csd_plugin.slicing.proof import prove
from csd_plugin.slicing.structure import shapes_of
from csd_plugin.slicing.trace import trace
from csd_plugin.slicing.widths import backbone_options, build_backbone, example_inputs, narrow_options, scaled_channels
from tests.backbones import IMAGE_BACKBONES, PREFIX_BACKBONES, SCALABLE, tiny


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(64, 0.25, 16), (100, 0.29, 29), (64, 0.3, 19), (3, 0.25, 0), (180, 1 / 3, 60)]
)
def test_channels_are_rounded_down_but_not_by_float_error(channels, width, expected):
    assert scaled_channels(channels, width) == expected


def networks(options, width=0.5, width_args=None):
    """Name, teacher, student and an input."""
    options = backbone_options(options)
    narrow = narrow_options(options, width, width_args)
    return options["type"], build_backbone(options), build_backbone(narrow), example_inputs(options)


def traced(name, teacher, student, inputs):
    return ChannelMap.from_layouts(trace(name, teacher, student, inputs).layouts, shapes_of(teacher))


def prefix(teacher, student):
    return first_channels(shapes_of(teacher), shapes_of(student))


@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_traced_maps_satisfy_the_embedding_invariant(name, scale):
    name, teacher, student, inputs = networks(tiny(name, scale))
    prove(name, teacher, student, traced(name, teacher, student, inputs), inputs)


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_prefix_slices_are_right_for_five_and_caught_for_the_others(name):
    name, teacher, student, inputs = networks(tiny(name))
    if name in PREFIX_BACKBONES:
        prove(name, teacher, student, prefix(teacher, student), inputs)
        channels = traced(name, teacher, student, inputs).channels
        assert all(np.array_equal(c, np.arange(len(c))) for axes in channels.values() for c in axes)
    else:
        with pytest.raises(ChannelMapError, match=f"{name}: the student cannot be proved"):
            prove(name, teacher, student, prefix(teacher, student), inputs)


def test_the_refusal_names_the_layer():
    name, teacher, student, inputs = networks(tiny("RRDBNet"))
    with pytest.raises(ChannelMapError, match=r"RRDBNet: .*body\.0\.rdb1\.conv2 gives another result"):
        prove(name, teacher, student, prefix(teacher, student), inputs)


@pytest.mark.parametrize("name", [*IMAGE_BACKBONES, "BasicVSR", "EDVR"])
def test_a_map_shifted_by_one_channel_in_one_layer_is_caught(name):
    name, teacher, student, inputs = networks(tiny(name))
    channel_map = traced(name, teacher, student, inputs)
    weights = dict(teacher.named_parameters())

    def fits(key):
        channels = channel_map.channels[key]
        return key in weights and len(channels) > 1 and len(channels[1]) < weights[key].shape[1]

    key = [key for key in channel_map.channels if fits(key)][-1]
    with pytest.raises(ChannelMapError, match=f"{name}: the student cannot be proved"):
        prove(name, teacher, student, shifted(channel_map, key, place=-1), inputs)


def shifted(channel_map, key, place):
    """The same map but for one input channel of one layer, which is another that the student does not take."""
    out, into, *rest = channel_map.channels[key]
    free = min(set(range(channel_map.shapes[key][1])) - set(into.tolist()))
    moved = into.copy()
    moved[place] = free
    return ChannelMap({**channel_map.channels, key: (out, moved, *rest)}, channel_map.shapes)


def test_the_second_order_alignment_of_basicvsrpp_is_proved(monkeypatch):
    """BasicSR builds it where there is CUDA; its third part, channels -20 to -5, is zero up to the third frame."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    name, teacher, student, inputs = networks(tiny("BasicVSRPlusPlus"))
    channel_map = traced(name, teacher, student, inputs)
    key = "deform_align.forward_2.conv_offset.0.weight"
    assert channel_map.channels[key][1].tolist()[-5] == 3 * 32 - 3  # the last but one pair of channels, then the flows
    with pytest.raises(ChannelMapError, match="the student cannot be proved"):
        prove(name, teacher, student, shifted(channel_map, key, place=-5), inputs, modes=(False,))


def test_maps_of_concatenations_and_packed_heads():
    """RRDBNet: 8 + 4 -> 4 + 2 channels. SwinIR: q, k and v of 4 -> 2 heads of 4 channels."""
    name, teacher, student, inputs = networks(tiny("RRDBNet"))
    channels = traced(name, teacher, student, inputs).channels
    assert channels["body.0.rdb1.conv3.weight"][1].tolist() == [0, 1, 2, 3, 8, 9, 12, 13]
    name, teacher, student, inputs = networks(tiny("SwinIR"))
    channels = traced(name, teacher, student, inputs).channels
    qkv = channels["layers.0.residual_group.blocks.0.attn.qkv.weight"][0].tolist()
    assert qkv == [*range(8), *range(16, 24), *range(32, 40)]
    name, teacher, student, inputs = networks(tiny("SwinIR"), width_args=["embed_dim"])
    channels = traced(name, teacher, student, inputs).channels
    assert channels["layers.0.residual_group.blocks.0.attn.proj.weight"][1].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]


@pytest.mark.parametrize(
    "options",
    [
        {**tiny("SwinIR", 4), "upsampler": "pixelshuffledirect"},
        {**tiny("SwinIR", 4), "upsampler": "nearest+conv"},
        {**tiny("SwinIR", 1), "upsampler": ""},
        {**tiny("ECBSR"), "with_idt": True},
        {**tiny("EDVR"), "num_feat": 16, "deformable_groups": 4},
        tiny("EDVR"),
        tiny("BasicVSR"),
    ],
    ids=lambda o: f"{o['type']}-{len(str(o))}",
)
def test_other_forms_and_video_networks_are_proved(options):
    name, teacher, student, inputs = networks(options)
    prove(name, teacher, student, traced(name, teacher, student, inputs), inputs, modes=(True,))


class Outsider(nn.Module):
    """An architecture of somebody else's: concatenation, PReLU, depthwise convolution, PixelShuffle."""

    def __init__(self, base=8, depth=2):
        super().__init__()
        self.head = nn.Conv2d(3, base, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(base * (i + 1), base, 3, padding=1) for i in range(depth))
        self.act = nn.PReLU(base)
        self.depthwise = nn.Conv2d(base, base, 3, padding=1, groups=base)
        self.fuse = nn.Linear(base * (depth + 1), base)
        self.tail = nn.Sequential(
            nn.Conv2d(2 * base, 4 * base, 1), nn.PixelShuffle(2), nn.Conv2d(base, 3, 3, padding=1)
        )
        self.gain = nn.Parameter(torch.ones(base, 1, 1))

    def forward(self, x):
        features = [self.head(x)]
        for layer in self.body:
            features.append(self.act(layer(torch.cat(features, 1))))
        fused = self.fuse(torch.cat(features, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.gain
        a, b = torch.cat([self.depthwise(fused), features[1]], 1).chunk(2, 1)
        return self.tail(torch.cat([b, a], 1))


@pytest.fixture
def outsider():
    from basicsr.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY._obj_map["Outsider"] = Outsider
    yield {"type": "Outsider", "base": 8}
    del ARCH_REGISTRY._obj_map["Outsider"]


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_an_outsiders_architecture_needs_only_its_argument_named(outsider, width):
    with pytest.raises(OptionError, match="width argument of Outsider is not known"):
        CSSRNet(outsider, width)
    net = CSSRNet(outsider, width, width_args=["base"]).eval()
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(net(x), net.export(width)(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gather", ["strided", "flipped", "sorted", "mean"])
def test_what_cannot_be_followed_is_refused(gather):
    class Odd(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2 * width, 1), nn.Conv2d(width, 3, 1)

        def forward(self, x):
            x = self.a(x)
            if gather == "strided":
                return self.b(x[:, ::2])
            if gather == "flipped":
                return self.b(x.flip(1)[:, : x.shape[1] // 2])
            if gather == "sorted":
                return self.b(x.sort(1)[0][:, : x.shape[1] // 2])
            half = x[:, : x.shape[1] // 2]
            return self.b(half - half.mean(1, keepdim=True))

    teacher, student, inputs = Odd(8), Odd(4), [torch.rand(1, 3, 4, 4)]
    with pytest.raises(ChannelMapError, match="Odd: "):
        prove("Odd", teacher, student, traced("Odd", teacher, student, inputs), inputs)


def test_networks_that_do_not_run_in_step_are_refused():
    ecbsr = {**tiny("ECBSR"), "with_idt": True, "num_channel": 16}
    with pytest.raises(ChannelMapError, match="ECBSR: .* do not carry out the same operations"):
        CSSRNet(ecbsr, 0.75)  # 12 channels are as many as its last layer has, which then gets an identity


def test_a_narrow_network_that_cannot_run_is_refused_in_one_line():
    with pytest.raises(ChannelMapError, match=r"^SwinIR: the wide or the narrow network cannot run: shape .*$"):
        CSSRNet({**tiny("SwinIR"), "embed_dim": 20, "num_heads": [5, 5]}, 0.7)  # 14 channels do not divide by 3 heads


def test_networks_with_other_layers_are_refused():
    wide, narrow = {"a.weight": torch.Size([4])}, {"b.weight": torch.Size([2])}
    with pytest.raises(ChannelMapError, match=r"Net: .*a\.weight"):
        check_same_layers("Net", wide, narrow)
    with pytest.raises(ChannelMapError, match=r"a\.weight of shape \(8,\) is no slice of \(4,\)"):
        check_same_layers("Net", wide, {"a.weight": torch.Size([8])})


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


@pytest.mark.parametrize("name", ["SpyNet", "TOFlow", "DUF"])
def test_networks_without_a_width_are_refused(name):
    with pytest.raises(OptionError, match=f"{name} has no width to split"):
        CSSRNet({"type": name}, 0.5)
