"""Which teacher channels each student weight takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from csd_plugin.errors import ChannelMapError

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class ChannelMap:
    """For each tensor of the student, the index into the teacher's tensor of the same name.

    Attributes:
        indices: one slice per axis; indexing a teacher tensor with them gives the student's tensor as a view.
        shapes: shapes of the teacher's tensors.
    """

    indices: Mapping[str, tuple[slice, ...]]
    shapes: Shapes

    def slice(self, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's tensors as views of the teacher's: gradients flow back into the teacher's storage."""
        return {name: teacher[name][index] for name, index in self.indices.items()}

    def embed(self, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's tensors inside tensors of the teacher's shapes that are zero everywhere else."""
        embedded = {}
        for name, tensor in student.items():
            embedded[name] = tensor.new_zeros(self.shapes[name])
            embedded[name][self.indices[name]] = tensor
        return embedded


def prefix_map(architecture: str, wide: Shapes, narrow: Shapes) -> ChannelMap:
    """The map that takes the first channels of every axis (the paper, section 3.1).

    Right where no layer reads a concatenation; `csd_plugin.slicing.proof` tells whether it is right.

    Args:
        architecture: name quoted in errors.
        wide: shapes of the teacher's state dict.
        narrow: shapes of the student's state dict.

    Raises:
        ChannelMapError: the two networks do not have the same tensors, or the student is larger somewhere.
    """
    different = sorted(set(wide) ^ set(narrow))
    if different:
        raise ChannelMapError(f"{architecture}: teacher and student do not have the same layers: {different[0]}")
    indices = {}
    for name, shape in narrow.items():
        if len(shape) != len(wide[name]) or any(n > w for n, w in zip(shape, wide[name], strict=True)):
            raise ChannelMapError(f"{architecture}: {name} of shape {tuple(shape)} is no slice of {tuple(wide[name])}")
        indices[name] = tuple(slice(0, n) for n in shape)
    return ChannelMap(indices, dict(wide))
