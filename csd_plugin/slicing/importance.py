"""Ordering the teacher's channels by importance before a student takes the first of them.

Channels that belong together (a residual stream, a concatenation, the groups of a PixelShuffle) are one free layout of
the trace, so permuting layouts permutes the network consistently and its function stays as it is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from csd_plugin.slicing.layout import Layout, positions, select

Layouts = Mapping[str, Sequence[Layout]]
Order = Mapping[Layout, np.ndarray]


def importance_order(weights: Mapping[str, Tensor], layouts: Layouts) -> dict[Layout, np.ndarray]:
    """For each group of channels its channels, the most important first.

    The importance of a channel is the L1 norm of the weights that read it, as in once-for-all networks (Cai et al.,
    ICLR 2020, section 3.3).

    Args:
        weights: the teacher's parameters by name.
        layouts: layouts of their axes.
    """
    importance: dict[Layout, np.ndarray] = {}
    for name, axes in layouts.items():
        if name not in weights:
            continue
        magnitude = weights[name].detach().abs().double().cpu().numpy()
        for axis, layout in enumerate(axes):
            for leaf, at, channel in positions(layout):
                total = importance.setdefault(leaf, np.zeros(leaf.wide))
                if axis == 1:
                    others = tuple(d for d in range(magnitude.ndim) if d != axis)
                    np.add.at(total, channel, magnitude.sum(others)[at])
    return {leaf: np.argsort(-total, kind="stable") for leaf, total in importance.items()}


@torch.no_grad()
def permute_channels(tensors: Mapping[str, Tensor], layouts: Layouts, order: Order) -> None:
    """Permute the teacher's tensors in place; its function does not change.

    Args:
        tensors: the teacher's parameters and buffers by name.
        layouts: layouts of their axes.
        order: new order of each group of channels.
    """

    def chosen(leaf: Layout) -> np.ndarray:
        return np.arange(leaf.wide) if leaf.form == "same" else order[leaf]

    for name, tensor in tensors.items():
        permuted = tensor
        for axis, layout in enumerate(layouts[name]):
            index = select(layout, chosen)
            if not np.array_equal(index, np.arange(len(index))):
                permuted = permuted.index_select(axis, torch.from_numpy(index).to(tensor.device))
        if permuted is not tensor:
            tensor.copy_(permuted)
