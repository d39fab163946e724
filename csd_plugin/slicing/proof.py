"""The embedding invariant: a proof by computation that a channel map is right.

Put the student's weights at the mapped places of a teacher that is zero elsewhere. At full width that teacher must
compute exactly the student's function: what the other channels hold is zero, and a weight at a wrong place reads such a
zero instead of its channel. It needs no training. Normalisation across channels cannot satisfy it, since its statistics
depend on the width, and is left out of both networks for the proof.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.channel_map import ChannelMap
from csd_plugin.slicing.structure import Inputs, each_tensor, unchanged

Layers = list[tuple[str, Tensor]]

_RELATIVE_TOLERANCE = 1e-9
_GAIN = 0.5
_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU)
_CROSS_CHANNEL_NORMS = (nn.LayerNorm, nn.GroupNorm)
_MAPPED_BYTES = 1 << 18
_SMALL_INPUT = 32 * 32 * 3


def prove(
    architecture: str,
    teacher: nn.Module,
    student: nn.Module,
    channel_map: ChannelMap,
    inputs: Inputs,
    modes: Sequence[bool] = (True, False),
) -> None:
    """Check the embedding invariant.

    Args:
        architecture: name quoted in errors.
        teacher: wide network; only its structure is used, and it is not changed.
        student: narrow network; only its structure and its buffers are used, and it is not changed.
        channel_map: the map to prove.
        inputs: positional arguments of the forward pass.
        modes: training modes to prove it in.

    Raises:
        ChannelMapError: the outputs differ; names the first layer whose output is not the student's.
    """
    narrow_tensors = _weights(student) | {name: _double(buffer) for name, buffer in student.named_buffers()}
    middle_map = _middle_taps(channel_map)
    wide_tensors = {name: _embedded(channel_map, middle_map, name, made) for name, made in narrow_tensors.items()}
    pair = (teacher, wide_tensors), (student, narrow_tensors)
    inputs = each_tensor(lambda x: x.double() if x.is_floating_point() else x, inputs)
    with unchanged(teacher), unchanged(student):
        for network, tensors in pair:
            _leave_norms_out(network, tensors)
        _share_constants(teacher, student)
        for training in modes:
            wide, narrow = (_run(network, tensors, inputs, training) for network, tensors in pair)
            if len(wide) == len(narrow) and all(map(_agree, wide, narrow)):
                continue
            layers: tuple[Layers, Layers] = [], []
            for (network, tensors), record in zip(pair, layers, strict=True):
                _run(network, tensors, inputs, training, record)
            layer = _first_difference(*layers, channel_map)
            raise ChannelMapError(
                f"{architecture}: the student cannot be proved to be a slice of the teacher: "
                f"{layer or 'the network'} gives another result inside the wide network"
            )


def _weights(network: nn.Module) -> dict[str, "_Made"]:
    """Float64 values for the parameters: all different, none zero, and small, so that deep networks stay finite.

    They are cut out of one row of random numbers when they are needed, so that they take no memory in between.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    length = max((shape.numel() for shape in shapes.values()), default=0) + len(shapes)
    noise = torch.randn(length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def cut(start: int, shape: torch.Size) -> Callable[[], Tensor]:
        scale = _GAIN / max(1, shape[1:].numel()) ** 0.5
        return lambda: noise[start : start + shape.numel()].view(shape) * scale

    return {
        name: _Made(cut(start, shape), shape, noise.dtype, cut(start, _middle_tap(shape)))
        for start, (name, shape) in enumerate(shapes.items())
    }


def _double(tensor: Tensor) -> "_Made":
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return _Made(lambda: tensor.to(dtype, copy=True), tensor.shape, dtype)


def _embedded(channel_map: ChannelMap, middle_map: ChannelMap, name: str, student: "_Made") -> "_Made":
    def embed(places: ChannelMap, made: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: places.embed(name, made(), _zeros(places.shapes[name], student.dtype))

    middle = student.middle and embed(middle_map, student.middle)
    return _Made(embed(channel_map, student.make), channel_map.shapes[name], student.dtype, middle)


def _middle_tap(shape: torch.Size) -> torch.Size:
    """Shape of a convolution's weight that has a single tap."""
    return torch.Size([*shape[:2], *[1] * len(shape[2:])])


def _middle_taps(channel_map: ChannelMap) -> ChannelMap:
    channels = {name: [*axes[:2], *[np.zeros(1, int)] * len(axes[2:])] for name, axes in channel_map.channels.items()}
    return ChannelMap(channels, {name: _middle_tap(shape) for name, shape in channel_map.shapes.items()})


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Large ones are mapped, so that their memory goes back at once instead of leaving holes in the heap."""
    if shape.numel() * dtype.itemsize < _MAPPED_BYTES:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, shape.numel() * dtype.itemsize), dtype=dtype).view(shape)


class _Made(Tensor):
    """A weight whose values are made anew for each operation that reads it.

    Float64 copies of all weights would take several times the memory of the network that is being built.

    Args:
        make: gives the values.
        shape: their shape.
        dtype: their type.
        middle: gives the values when only the middle tap of a kernel is to count. Which channels a convolution reads
            does not depend on its taps, and one tap costs a ninth of nine.
    """

    @staticmethod
    def __new__(
        cls: type["_Made"],
        make: Callable[[], Tensor],
        shape: torch.Size,
        dtype: torch.dtype,
        middle: Callable[[], Tensor] | None = None,
    ) -> "_Made":
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)

    def __init__(
        self,
        make: Callable[[], Tensor],
        shape: torch.Size,
        dtype: torch.dtype,
        middle: Callable[[], Tensor] | None = None,
    ) -> None:
        self.make, self.middle = make, middle

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.convolution.default:
            args = cls._with_middle_tap(*args)
        args, kwargs = tree_map_only(cls, lambda made: made.make(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def _with_middle_tap(
        cls, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
    ) -> tuple[Any, ...]:
        """Arguments of the convolution with the middle tap alone, if that gives an output of the same size."""
        kernel = weight.shape[2:]
        same_size = all(k % 2 == 1 and p == d * (k // 2) for k, p, d in zip(kernel, padding, dilation, strict=True))
        if isinstance(weight, cls) and weight.middle is not None and not transposed and same_size:
            weight, padding = weight.middle(), [0] * len(kernel)
        return (x, weight, bias, stride, padding, dilation, transposed, *rest)


def _leave_norms_out(network: nn.Module, tensors: dict[str, "_Made"]) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, _CROSS_CHANNEL_NORMS):
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, nn.Identity())
            for key in [key for key in tensors if key.startswith(f"{name}.")]:
                del tensors[key]


def _share_constants(wide: nn.Module, narrow: nn.Module) -> None:
    """Set numbers that a constructor derives from the width (the scale of an attention) to the student's."""
    others = dict(wide.named_modules())
    for name, module in narrow.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and isinstance(vars(others[name]).get(key), float):
                setattr(others[name], key, value)


@contextmanager
def _proof_settings(inputs: Inputs) -> Iterator[None]:
    """One thread, as more only wait for each other on 8x8 pixels, and float64 for tensors that a forward pass makes."""
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    if sum(leaf.numel() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)) < _SMALL_INPUT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)


@contextmanager
def _recorded(network: nn.Module, layers: Layers | None) -> Iterator[None]:
    """Append name and output of each layer to `layers`, in the order in which they finish."""

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and layers is not None:
                layers.append((name, output.detach().clone()))

        return hook

    modules = [] if layers is None else network.named_modules()
    handles = [module.register_forward_hook(hook_for(name)) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(
    network: nn.Module,
    tensors: Mapping[str, _Made],
    inputs: Inputs,
    training: bool,
    layers: Layers | None = None,
) -> list[Tensor]:
    """The output, or the outputs of a network that has several."""
    network.train(training)
    for module in network.modules():
        if isinstance(module, _RANDOM_LAYERS):
            module.eval()
    with torch.random.fork_rng(devices=[]), _proof_settings(inputs), torch.no_grad(), _recorded(network, layers):
        torch.manual_seed(0)  # stochastic depth then drops the same blocks in both networks
        output = functional_call(network, dict(tensors), each_tensor(torch.clone, inputs))
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _agree(wide: Tensor, narrow: Tensor) -> bool:
    bound = _RELATIVE_TOLERANCE * max(1.0, float(narrow.abs().max()))
    return wide.shape == narrow.shape and bool(((wide - narrow).abs() <= bound).all())


def _first_difference(wide: Layers, narrow: Layers, channel_map: ChannelMap) -> str | None:
    """The first layer with a weight matrix or kernel whose output, at the student's channels, is not the student's."""
    for (name, wide_output), (_, narrow_output) in zip(wide, narrow, strict=False):
        weight = channel_map.channels.get(f"{name}.weight")
        if weight is None or len(weight) < 2:
            continue
        axis = 1 if len(weight) > 2 else wide_output.dim() - 1
        if wide_output.shape[axis] == len(weight[0]) == narrow_output.shape[axis]:
            selected = wide_output
        else:
            selected = wide_output.index_select(axis, torch.from_numpy(weight[0]))
        if not _agree(selected, narrow_output):
            return name
    return None
