"""Networks as structures: their tensors by name, and running them on other tensors without leaving a trace in them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Inputs = Sequence[Any]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without copies."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    """Shapes of parameters and buffers by name."""
    return {name: tensor.shape for name, tensor in tensors_of(network).items()}


def without_weights(network: nn.Module) -> nn.Module:
    """A copy of `network` whose parameters and buffers hold no memory (meta device), to be run with `functional_call`.

    Tensors that are plain attributes (EDSR's `mean`) keep their values.
    """
    memo: dict[int, Tensor] = {id(b): b.to("meta") for b in network.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo)


def drop_parameters(network: nn.Module) -> None:
    """Free the memory of the parameters of `network`, as `without_weights` does, without a copy of its modules."""
    _to_meta(network, lambda module: module._parameters)


def drop_buffers(network: nn.Module) -> None:
    """Free the memory of the buffers of `network`."""
    _to_meta(network, lambda module: module._buffers)


def _to_meta(network: nn.Module, store_of: Callable[[nn.Module], dict[str, Any]]) -> None:
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor itself is kept, so that its id is not used again
    for module in network.modules():
        store = store_of(module)
        for name, tensor in store.items():
            if tensor is None:
                continue
            if id(tensor) not in moved:
                empty = tensor.detach().to("meta")
                is_parameter = isinstance(tensor, nn.Parameter)
                moved[id(tensor)] = tensor, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            store[name] = moved[id(tensor)][1]


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Undo on leaving whatever is set in the modules meanwhile: modes, layers, results that a forward pass keeps."""
    before = [(module, vars(module), _shallow_copies(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for _module, attributes, (values, contents) in before:
            attributes.clear()
            attributes.update(values)
            for name, content in contents.items():
                _restore(attributes[name], content)


def _shallow_copies(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    contents = {name: copy.copy(value) for name, value in attributes.items() if type(value) in (dict, list, set)}
    return dict(attributes), contents


def _restore(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def each_tensor(change: Callable[[Tensor], Tensor], inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of a forward pass with every tensor in them, however nested, changed."""
    return tuple(tree_map_only(Tensor, change, tuple(inputs)))
