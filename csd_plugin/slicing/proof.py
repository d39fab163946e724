"""The embedding invariant: a proof by computation that a channel map is right.

Put the student's weights at the mapped places of a teacher that is zero elsewhere. At full width that teacher must
compute exactly the student's function: what the other channels hold is zero, and a weight at a wrong place reads such a
zero instead of its channel. It needs no training. Normalisation across channels cannot satisfy it, since its statistics
depend on the width, and is left out of both networks for the proof.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.channel_map import ChannelMap, without_weights

Layers = list[tuple[str, Tensor]]

_RELATIVE_TOLERANCE = 1e-9
_GAIN = 0.5
_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU)
_CROSS_CHANNEL_NORMS = (nn.LayerNorm, nn.GroupNorm)


def random_weights(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Float64 values for the parameters: all different, none zero, and small, so that deep networks stay finite."""
    weights = {}
    for name, parameter in network.named_parameters():
        fan_in = max(1, int(torch.Size(parameter.shape[1:]).numel()))
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        weights[name] = noise * (_GAIN / fan_in**0.5)
    return weights


def prove(
    architecture: str,
    teacher: nn.Module,
    student: nn.Module,
    channel_map: ChannelMap,
    inputs: Sequence[Tensor],
    modes: Sequence[bool] = (True, False),
) -> None:
    """Check the embedding invariant.

    Args:
        architecture: name quoted in errors.
        teacher: wide network; only its structure is used.
        student: narrow network; only its structure and its buffers are used.
        channel_map: the map to prove.
        inputs: positional arguments of the forward pass.
        modes: training modes to prove it in.

    Raises:
        ChannelMapError: the outputs differ; names the first layer whose output is not the student's.
    """
    wide, narrow = without_weights(teacher), without_weights(student)
    narrow_tensors = random_weights(narrow, torch.Generator().manual_seed(0))
    buffers = dict(student.named_buffers())
    for name, buffer in buffers.items():
        narrow_tensors[name] = buffer.double() if buffer.is_floating_point() else buffer.clone()
    wide_tensors: dict[str, Tensor] = {}
    for name, tensor in narrow_tensors.items():
        wide_tensors[name] = (
            channel_map.embed({name: tensor})[name] if name in buffers else _Embedded(channel_map, name, tensor)
        )
    for network, tensors in ((wide, wide_tensors), (narrow, narrow_tensors)):
        _leave_norms_out(network, tensors)
    _share_constants(wide, narrow)
    inputs = [x.double() for x in inputs]
    for training in modes:
        if _agree(_run(wide, wide_tensors, inputs, training), _run(narrow, narrow_tensors, inputs, training)):
            continue
        wide_layers: Layers = []
        narrow_layers: Layers = []
        _run(wide, wide_tensors, inputs, training, wide_layers)
        _run(narrow, narrow_tensors, inputs, training, narrow_layers)
        layer = _first_difference(wide_layers, narrow_layers, channel_map)
        raise ChannelMapError(
            f"{architecture}: the student cannot be proved to be a slice of the teacher: "
            f"{layer or 'the network'} gives another result inside the wide network"
        )


class _Embedded(Tensor):
    """A teacher's weight that is zero but for the student's, made anew for each operation that reads it.

    A float64 copy of all weights would take twice the memory of the network that is being built.
    """

    @staticmethod
    def __new__(cls: type["_Embedded"], channel_map: ChannelMap, name: str, student: Tensor) -> "_Embedded":
        return Tensor._make_wrapper_subclass(cls, channel_map.shapes[name], dtype=student.dtype)

    def __init__(self, channel_map: ChannelMap, name: str, student: Tensor) -> None:
        self._made_from = channel_map, name, student

    def _make(self) -> Tensor:
        channel_map, name, student = self._made_from
        return channel_map.embed({name: student})[name]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        made = tree_map(lambda leaf: leaf._make() if isinstance(leaf, cls) else leaf, (args, kwargs or {}))
        return func(*made[0], **made[1])


def _leave_norms_out(network: nn.Module, tensors: dict[str, Tensor]) -> None:
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
def _proof_settings() -> Iterator[None]:
    """One thread, as more only wait for each other on 8x8 pixels, and float64 for tensors that a forward pass makes."""
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
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
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    training: bool,
    layers: Layers | None = None,
) -> Tensor:
    network.train(training)
    for module in network.modules():
        if isinstance(module, _RANDOM_LAYERS):
            module.eval()
    with torch.random.fork_rng(devices=[]), _proof_settings(), torch.no_grad(), _recorded(network, layers):
        torch.manual_seed(0)  # stochastic depth then drops the same blocks in both networks
        return functional_call(network, dict(tensors), tuple(x.clone() for x in inputs))


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
