"""What a network costs by its structure: parameters, multiply-accumulates, activations, memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from csd_plugin.slicing.structure import without_weights

_PRODUCTS = frozenset({"convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Complexity:
    """Counted, not measured.

    Attributes:
        parameters: values in the parameters.
        macs: multiply-accumulates of convolutions and matrix products for one input.
        activations: values that convolutions and matrix products give for one input.
        memory: bytes of the tensors that live at once in a forward pass, weights and input left out. What a kernel
            takes to work in comes on top.
    """

    parameters: int
    macs: int
    activations: int
    memory: int


def count_parameters(network: nn.Module) -> int:
    """Number of values in the network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: tuple[int, ...]) -> int:
    """Multiply-accumulates for one input, see `count`."""
    return count(network, size).macs


def count(network: nn.Module, size: tuple[int, ...]) -> Complexity:
    """Count without computing (meta tensors), in well under a second for any size.

    Args:
        network: any network; it is not changed.
        size: channels, height and width of the input, or frames, channels, height and width.

    Returns:
        Counts for one input; MACs are half of what `FlopCounterMode` counts as floating-point operations.
    """
    shadow = without_weights(network).eval()
    x = torch.empty(1, *size, device="meta")
    tensors = _Tensors({*shadow.parameters(), *shadow.buffers(), x})
    with torch.no_grad(), FlopCounterMode(display=False) as counter, tensors:
        shadow(x)
    return Complexity(count_parameters(network), counter.get_total_flops() // 2, tensors.activations, tensors.peak)


class _Tensors(TorchDispatchMode):
    """Counts what convolutions and matrix products give, and the bytes of all tensors that live at once."""

    def __init__(self, given: set[Tensor]) -> None:
        super().__init__()
        self.activations = 0
        self.peak = 0
        self._given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS and isinstance(output, Tensor):
            self.activations += output.numel()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._given:
                    self._live[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output
