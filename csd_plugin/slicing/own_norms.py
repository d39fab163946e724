"""Batch normalisation of the students: statistics and affine parameters of their own for each width.

The statistics of a channel depend on the channels that feed it, so the teacher's are wrong for a student (switchable
batch normalisation: Yu et al., Slimmable Neural Networks, ICLR 2019).
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from csd_plugin.slicing.channel_map import ChannelMap
from csd_plugin.slicing.structure import tensors_of

_DOT = "-"  # a ModuleDict's keys may not hold a dot


class OwnNorms(nn.ModuleDict):
    """The batch normalisations of one student.

    Args:
        norms: the student's, as `batch_norms` gives them.
        channel_map: the student's channels.
    """

    def __init__(self, norms: Mapping[str, nn.Module], channel_map: ChannelMap) -> None:
        super().__init__({name.replace(".", _DOT): norm for name, norm in norms.items()})
        self._channel_map = channel_map

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by the names that they have in the backbone."""
        return {name.replace(_DOT, "."): tensor for name, tensor in tensors_of(self).items()}

    def fill_in(self, state: dict[str, Any], stock: str, own: str) -> None:
        """Give a state dict that lacks them, as a stock one does, the teacher's values of the student's channels.

        Args:
            state: the state dict that is being loaded.
            stock: prefix of the backbone's keys in it.
            own: prefix of the keys of this module in it.
        """
        for name in tensors_of(self):
            source = name.replace(_DOT, ".")
            if own + name not in state and stock + source in state:
                state[own + name] = self._channel_map.slice({source: state[stock + source]})[source].clone()


def batch_norms(student: nn.Module) -> dict[str, nn.Module]:
    """Copies of the batch normalisations of a narrow network by name."""
    norms = {name: m for name, m in student.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return {name: copy.deepcopy(norm) for name, norm in norms.items()}


def width_key(width: float) -> str:
    """Key of a width in a ModuleDict."""
    return f"{width:g}".replace(".", _DOT)
