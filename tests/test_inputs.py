"""Networks with several inputs: teacher and students see what the stock network would."""

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from torch import nn

from csd_plugin import CSDModel, CSSRNet, OptionError
from tests.conftest import base_options, train


class Conditioned(nn.Module):
    """Super-resolution with a blur code beside the image, as somebody else would write it."""

    def __init__(self, num_feat=8, takes="arguments"):
        super().__init__()
        self.takes = takes
        self.head = nn.Conv2d(3, num_feat, 3, padding=1)
        self.code = nn.Linear(4, num_feat)
        self.tail = nn.Sequential(nn.Conv2d(2 * num_feat, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, lq, code=None):
        if self.takes == "dict":
            lq, code = lq.pop("lq"), lq.pop("code")
        features = self.head(lq)
        gain = self.code(code)[:, :, None, None]
        return self.tail(torch.cat([features, features * gain], 1))


class ConditionedModel(CSDModel):
    """Gives the network the mean of each channel and a constant."""

    def network_inputs(self, lq):
        return lq, torch.cat([lq.mean((2, 3)), torch.ones_like(lq[:, :1, 0, 0])], 1)


@pytest.fixture(autouse=True)
def registered():
    ARCH_REGISTRY._obj_map["Conditioned"] = Conditioned
    MODEL_REGISTRY._obj_map["ConditionedModel"] = ConditionedModel
    yield
    del ARCH_REGISTRY._obj_map["Conditioned"]
    del MODEL_REGISTRY._obj_map["ConditionedModel"]


SHAPES = {
    "arguments": [[1, 3, 8, 8], [1, 4]],
    "dict": {"lq": [1, 3, 8, 8], "code": [1, 4]},
}


def given(takes):
    lq, code = torch.rand(2, 3, 8, 8), torch.rand(2, 4)
    return {"arguments": (lq, code), "dict": ({"lq": lq, "code": code},)}[takes]


def network(takes):
    backbone = {"type": "Conditioned", "num_feat": 8, "takes": takes}
    shapes = SHAPES[takes]
    return CSSRNet(backbone, [0.5, 0.25], width_args=["num_feat"], example_input=shapes).eval()


@pytest.mark.parametrize("takes", SHAPES)
def test_every_width_sees_the_inputs_as_they_are(takes):
    net, inputs = network(takes), given(takes)
    outputs = net(*inputs, width=[1.0, 0.5, 0.25])
    for width, output in outputs.items():
        torch.testing.assert_close(output, net.export(width)(*given_again(inputs)), atol=1e-6, rtol=0)
    if takes == "arguments":
        torch.testing.assert_close(net(inputs[0], code=inputs[1]), outputs[0.5])


def given_again(inputs):
    return tuple(dict(x) if isinstance(x, dict) else x for x in inputs)


def test_a_dict_is_left_to_the_caller_as_it_was():
    (inputs,) = given("dict")
    network("dict")(inputs)
    assert list(inputs) == ["lq", "code"]


@pytest.mark.parametrize("shapes", ["image", [[1, 3, 8, 8], "code"], {}, [], [1, 0, 8, 8], {"lq": 3}])
def test_shapes_that_are_none_are_refused(shapes):
    with pytest.raises(OptionError, match="network_g:example_input"):
        CSSRNet({"type": "Conditioned", "num_feat": 8}, 0.5, width_args=["num_feat"], example_input=shapes)


def test_a_model_of_ones_own_trains_it(pairs, tmp_path):
    changes = {
        "model_type": "ConditionedModel",
        "network_g:backbone": {"type": "Conditioned", "num_feat": 8},
        "network_g:width_args": ["num_feat"],
        "network_g:example_input": SHAPES["arguments"],
    }
    assert train(base_options(**changes)) == 0
    assert (tmp_path / "experiments/tiny/models/net_g_student_4.pth").is_file()
    options = base_options(**changes) | {"dist": False, "rank": 0, "world_size": 1, "is_train": True}
    options["path"] |= {"models": "models", "training_states": "states", "visualization": "vis"}
    csd = build_model(options)
    csd.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    csd.test()
    expected = csd.net_g_ema.export(0.5)(*csd.network_inputs(csd.lq))
    torch.testing.assert_close(csd.output, expected)
