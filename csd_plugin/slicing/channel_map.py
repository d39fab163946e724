"""Which teacher channels each student weight takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.layout import Layout, channels

Shapes = Mapping[str, torch.Size]
Places = tuple[tuple[slice, ...], dict[int, Tensor]]


@dataclass(frozen=True)
class ChannelMap:
    """For each tensor of the student, the channels it takes of the teacher's tensor of the same name.

    Attributes:
        channels: for each axis the teacher's channels, int64 (narrow,).
        shapes: shapes of the teacher's tensors.
        layouts: what the channels were read from, if they were traced.
    """

    channels: Mapping[str, Sequence[np.ndarray]]
    shapes: Shapes
    layouts: Mapping[str, Sequence[Layout]] = field(default_factory=dict, repr=False)
    _cache: dict[tuple[str, torch.device], Places] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_layouts(cls, layouts: Mapping[str, Sequence[Layout]], shapes: Shapes) -> "ChannelMap":
        """The map that traced layouts stand for."""
        return cls({name: [channels(axis) for axis in axes] for name, axes in layouts.items()}, shapes, layouts)

    def with_axes(self, declared: Mapping[tuple[str, int], np.ndarray]) -> "ChannelMap":
        """The same map with other channels on some axes; it is no longer one that was traced."""
        channels = {
            name: [declared.get((name, axis), taken) for axis, taken in enumerate(axes)]
            for name, axes in self.channels.items()
        }
        return ChannelMap(channels, self.shapes)

    def slice(self, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's tensors, through which gradients flow back into the teacher's.

        First channels are taken as a view; other channels are gathered.

        Args:
            teacher: any of the teacher's tensors by name.
        """
        return {name: self._take(name, tensor) for name, tensor in teacher.items()}

    def embed(self, name: str, student: Tensor, into: Tensor) -> Tensor:
        """Write a tensor of the student to its places in a tensor of the teacher's shape, which is returned."""
        views, gathers = self._places(name, student.device)
        if gathers:
            grid = tuple(torch.from_numpy(axis).to(student.device) for axis in np.ix_(*self.channels[name]))
            into[grid] = student
        else:
            into[views] = student
        return into

    def _take(self, name: str, tensor: Tensor) -> Tensor:
        views, gathers = self._places(name, tensor.device)
        tensor = tensor[views]
        for axis, index in gathers.items():
            tensor = tensor.index_select(axis, index)
        return tensor

    def _places(self, name: str, device: torch.device) -> Places:
        key = (name, device)
        if key not in self._cache:
            self._cache[key] = _views_and_gathers(self.channels[name], device)
        return self._cache[key]


def _views_and_gathers(axes: Sequence[np.ndarray], device: torch.device) -> Places:
    views, gathers = [], {}
    for axis, taken in enumerate(axes):
        if np.array_equal(taken, np.arange(len(taken))):
            views.append(slice(0, len(taken)))
        else:
            views.append(slice(None))
            gathers[axis] = torch.from_numpy(taken).to(device)
    return tuple(views), gathers


def first_channels(wide: Shapes, narrow: Shapes) -> ChannelMap:
    """The map that takes the first channels of every axis, right where no layer reads a concatenation."""
    return ChannelMap({name: [np.arange(n) for n in shape] for name, shape in narrow.items()}, wide)


def check_same_layers(architecture: str, wide: Shapes, narrow: Shapes) -> None:
    """Refuse networks that do not consist of the same layers.

    Args:
        architecture: name quoted in errors.
        wide: shapes of the teacher's tensors.
        narrow: shapes of the student's tensors.

    Raises:
        ChannelMapError: a tensor is in one of them only, or is larger in the student.
    """
    different = sorted(set(wide) ^ set(narrow))
    if different:
        raise ChannelMapError(f"{architecture}: teacher and student do not have the same layers: {different[0]}")
    for name, shape in narrow.items():
        if len(shape) != len(wide[name]) or any(n > w for n, w in zip(shape, wide[name], strict=True)):
            raise ChannelMapError(f"{architecture}: {name} of shape {tuple(shape)} is no slice of {tuple(wide[name])}")
