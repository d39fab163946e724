"""Parameters and multiply-accumulates of a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csd_plugin.slicing.structure import without_weights


def count_parameters(network: nn.Module) -> int:
    """Number of values in the network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products, counted without computing (meta tensors).

    Args:
        network: any network; it is not changed.
        size: channels, height and width of the input.

    Returns:
        MACs for one image; half of what `FlopCounterMode` counts as floating-point operations.
    """
    shadow = without_weights(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2
