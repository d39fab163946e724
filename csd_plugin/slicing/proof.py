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

Layers = list[tuple[str, Tensor]]

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
        if _agree(_run(wide, wide_weights, image, training), _run(narrow, narrow_weights, image, training)):
            continue
        wide_layers: Layers = []
        narrow_layers: Layers = []
        _run(wide, wide_weights, image, training, wide_layers)
        _run(narrow, narrow_weights, image, training, narrow_layers)
        layer = _first_difference(wide_layers, narrow_layers)
        reason = "the weights taken for it are not the ones it needs (a layer that reads a concatenation?)"
        if isinstance(student.get_submodule(layer), _CROSS_CHANNEL_NORMS):
            reason = "it normalises across channels"
        raise ChannelMapError(
            f"{architecture}: the student cannot be proved to be a slice of the teacher: {layer or 'its output'} gives "
            f"another result inside the wide network; {reason}"
        )


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
    network: nn.Module, weights: Mapping[str, Tensor], image: Tensor, training: bool, layers: Layers | None = None
) -> Tensor:
    network.train(training)
    for module in network.modules():
        if isinstance(module, _RANDOM_LAYERS):
            module.eval()
    with _proof_settings(), torch.no_grad(), _recorded(network, layers):
        return functional_call(network, dict(weights), (image.clone(),))


def _agree(wide: Tensor, narrow: Tensor) -> bool:
    """Whether the first channels of `wide` are `narrow`."""
    if wide.dim() != narrow.dim() or any(w < n for w, n in zip(wide.shape, narrow.shape, strict=True)):
        return False
    part = wide[tuple(slice(0, n) for n in narrow.shape)]
    bound = _RELATIVE_TOLERANCE * max(1.0, float(narrow.abs().max()))
    return bool(((part - narrow).abs() <= bound).all())


def _first_difference(wide: Layers, narrow: Layers) -> str:
    for (name, wide_output), (_, narrow_output) in zip(wide, narrow, strict=False):
        if not _agree(wide_output, narrow_output):
            return name
    return ""
