"""The embedding invariant: a proof by computation that a channel map is right.

Put the student's weights at the mapped places of a teacher that is zero elsewhere. At full width that teacher must
compute exactly the student's function: what the other channels hold is zero, and a weight at a wrong place reads such a
zero instead of its channel. It needs no training and holds for every network that does not normalise across channels.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.channel_map import ChannelMap

_RELATIVE_TOLERANCE = 1e-9
_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU)
_CROSS_CHANNEL_NORMS = (nn.LayerNorm, nn.GroupNorm)


def without_weights(network: nn.Module) -> nn.Module:
    """A copy of `network` whose parameters and buffers hold no memory (meta device), to be run with `functional_call`.

    Tensors that are plain attributes (EDSR's `mean`) keep their values.
    """
    tensors = [*network.parameters(), *network.buffers()]
    memo = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(network, memo)


def random_weights(shapes: Mapping[str, torch.Size], generator: torch.Generator) -> dict[str, Tensor]:
    """Float64 weights, all different and none zero, small enough for deep networks to stay finite."""
    weights = {}
    for name, shape in shapes.items():
        fan_in = max(1, int(torch.Size(shape[1:]).numel()))
        weights[name] = torch.randn(shape, dtype=torch.float64, generator=generator) * (0.5 / fan_in**0.5)
    return weights


def prove(architecture: str, teacher: nn.Module, student: nn.Module, channel_map: ChannelMap, image: Tensor) -> None:
    """Check the embedding invariant in training and in evaluation mode.

    Args:
        architecture: name quoted in errors.
        teacher: wide network; only its structure is used.
        student: narrow network; only its structure is used.
        channel_map: the map to prove.
        image: example input (1, C, H, W), float64.

    Raises:
        ChannelMapError: the outputs differ; names the first layer whose output is not the student's.
    """
    generator = torch.Generator().manual_seed(0)
    narrow_shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    narrow_weights = random_weights(narrow_shapes, generator)
    wide_weights = channel_map.embed(narrow_weights)
    wide, narrow = without_weights(teacher), without_weights(student)
    for training in (True, False):
        narrow_trace = _run(narrow, narrow_weights, image, training)
        wide_trace = _run(wide, wide_weights, image, training)
        if _agree(wide_trace.output, narrow_trace.output):
            continue
        layer = _first_difference(wide_trace, narrow_trace)
        reason = "the weights taken for it are not the ones it needs (a layer that reads a concatenation?)"
        if isinstance(student.get_submodule(layer), _CROSS_CHANNEL_NORMS):
            reason = "it normalises across channels"
        raise ChannelMapError(
            f"{architecture}: the student cannot be proved to be a slice of the teacher: {layer or 'its output'} gives "
            f"another result inside the wide network; {reason}"
        )


class _Trace:
    """The output of one run and the outputs of its layers in the order in which they finished."""

    def __init__(self) -> None:
        self.layers: list[tuple[str, Tensor]] = []
        self.output = torch.empty(0)


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Tensors that a forward pass makes itself (ECBSR in evaluation mode) get the type of the weights."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _recorded(network: nn.Module, record: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                record(name, output.detach().clone())

        return hook

    handles = [m.register_forward_hook(hook_for(name)) for name, m in network.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(network: nn.Module, weights: Mapping[str, Tensor], image: Tensor, training: bool) -> _Trace:
    network.train(training)
    for module in network.modules():
        if isinstance(module, _RANDOM_LAYERS):
            module.eval()
    trace = _Trace()
    with (
        _float64_by_default(),
        torch.no_grad(),
        _recorded(network, lambda name, output: trace.layers.append((name, output))),
    ):
        trace.output = functional_call(network, dict(weights), (image.clone(),))
    return trace


def _agree(wide: Tensor, narrow: Tensor) -> bool:
    """Whether the first channels of `wide` are `narrow`."""
    if wide.dim() != narrow.dim() or any(w < n for w, n in zip(wide.shape, narrow.shape, strict=True)):
        return False
    part = wide[tuple(slice(0, n) for n in narrow.shape)]
    bound = _RELATIVE_TOLERANCE * max(1.0, float(narrow.abs().max()))
    return bool(((part - narrow).abs() <= bound).all())


def _first_difference(wide: _Trace, narrow: _Trace) -> str:
    for (name, wide_output), (_, narrow_output) in zip(wide.layers, narrow.layers, strict=False):
        if not _agree(wide_output, narrow_output):
            return name
    return ""
