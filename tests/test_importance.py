import copy

import numpy as np
import pytest
import torch

from csd_plugin import CSSRNet, OptionError
from tests.backbones import IMAGE_BACKBONES, tiny
from tests.conftest import base_options, load, train
from tests.test_csd_model import batch, model


def shaken(name, **arguments):
    net = CSSRNet(tiny(name), 0.5, **arguments).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return net


@pytest.mark.parametrize("name", [*IMAGE_BACKBONES, "EDVR"])
def test_ordering_changes_the_student_but_not_the_teacher(name):
    net = shaken(name)
    (x,) = net.example_inputs()
    teacher, student = net(x, width=1.0), net(x)
    net.permute_channels(net.importance_order())
    torch.testing.assert_close(net(x, width=1.0), teacher, atol=1e-5 * float(teacher.abs().max()), rtol=0)
    assert not torch.allclose(net(x), student, rtol=1e-3)
    torch.testing.assert_close(net.export(0.5)(x), net(x), atol=1e-6, rtol=1e-6)


def test_the_most_read_channels_come_first():
    net = shaken("EDSR")
    net.permute_channels(net.importance_order())
    read = net.teacher.body[0].conv2.weight.abs().sum((0, 2, 3))
    assert torch.equal(read.argsort(descending=True), torch.arange(8))


def test_an_order_applies_to_a_copy():
    net = shaken("RRDBNet")
    twin = copy.deepcopy(net)
    order = net.importance_order()
    net.permute_channels(order)
    twin.permute_channels(order)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_ordering_twice_changes_nothing():
    net = shaken("EDSR")
    net.permute_channels(net.importance_order())
    assert all(np.array_equal(o, np.arange(len(o))) for o in net.importance_order().values())


def test_training_starts_from_the_ordered_teacher(pairs, tmp_path):
    teacher = shaken("EDSR")
    torch.save({"params": teacher.state_dict(), "params_ema": teacher.state_dict()}, tmp_path / "teacher.pth")
    changes = {"network_g:backbone": tiny("EDSR"), "network_g:channel_order": "importance"}
    csd = model(**changes, **{"path:pretrain_network_g": "teacher.pth"})
    x = batch()["lq"]
    torch.testing.assert_close(csd.net_g.eval()(x, width=1.0), teacher(x, width=1.0), atol=1e-5, rtol=1e-5)
    for ours, ema in zip(csd.net_g.parameters(), csd.net_g_ema.parameters(), strict=True):
        assert torch.equal(ours, ema)
    assert not torch.equal(csd.net_g.teacher.conv_first.weight, teacher.teacher.conv_first.weight)


def test_a_resumed_run_is_not_ordered_again(pairs, tmp_path):
    options = base_options(**{"network_g:channel_order": "importance"})
    assert train(options) == 0
    options["train"]["total_iter"] = 4
    before = load(tmp_path / "experiments/tiny/models/net_g_4.pth")
    assert train(options, "--auto_resume") == 0
    after = load(tmp_path / "experiments/tiny/models/net_g_latest.pth")
    for key, tensor in before["params"].items():
        assert torch.equal(tensor, after["params"][key])


def test_other_orders_are_refused():
    with pytest.raises(OptionError, match="expected stock or importance, got 'random'"):
        CSSRNet(tiny("EDSR"), 0.5, channel_order="random")


def test_a_width_for_a_budget():
    net = CSSRNet(tiny("EDSR"), [0.25, 0.5])
    from csd_plugin.evaluation.complexity import count_macs

    costs = {w: count_macs(net.export(w), (3, 16, 16)) for w in (1.0, 0.5, 0.25)}
    assert [net.width_for(cost, (3, 16, 16)) for cost in costs.values()] == [1.0, 0.5, 0.25]
    assert net.width_for(costs[1.0] - 1, (3, 16, 16)) == 0.5
    with pytest.raises(ValueError, match="expected a budget of at least"):
        net.width_for(costs[0.25] - 1, (3, 16, 16))
