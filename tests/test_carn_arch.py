import pytest
import torch

from csd_plugin import CARN, OptionError
from csd_plugin.evaluation.complexity import count_parameters


def test_published_parameter_count():
    """The published 1,592 K are of one body with the upsamplers of x2, x3 and x4."""
    nets = [CARN(upscale=scale) for scale in (2, 3, 4)]
    upsamplers = [count_parameters(net.upsample) for net in nets]
    assert count_parameters(nets[0]) - upsamplers[0] + sum(upsamplers) == 1_591_939


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_it_enlarges_and_starts_from_the_mean(scale):
    net = CARN(num_feat=8, upscale=scale)
    assert net(torch.rand(2, 3, 5, 6)).shape == (2, 3, 5 * scale, 6 * scale)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(net(torch.rand(1, 3, 4, 4)).mean((0, 2, 3)), torch.tensor([0.4488, 0.4371, 0.4040]))


def test_wrong_arguments():
    with pytest.raises(OptionError, match="expected 3 or a power of 2, got 6"):
        CARN(upscale=6)
    with pytest.raises(OptionError, match="a mean for each channel"):
        CARN(num_in_ch=1)
