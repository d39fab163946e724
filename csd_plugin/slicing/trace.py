"""Channel maps by running the wide and the narrow network in lock-step.

Both run the same Python code, so they carry out the same operations in the same order. Each pair of operations says how
the layouts of its inputs and outputs hang together (`rules`). Every axis of a weight thus ends up with a layout, which
says what teacher channels the student takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.channel_map import tensors_of, without_weights
from csd_plugin.slicing.layout import Layout, LayoutError, unify
from csd_plugin.slicing.rules import RULES, pointwise

_COPIES = frozenset({"aten::clone", "aten::detach", "aten::alias", "aten::_to_copy", "aten::lift_fresh"})


@dataclass(frozen=True)
class Operation:
    """One call of an aten operation."""

    op: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def name(self) -> str:
        """Name without overload; `_unsafe_view` is `view`, as strides, which differ, decide between them."""
        name = self.op._schema.name
        return "aten::view" if name in ("aten::_unsafe_view", "aten::reshape") else name

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors among the arguments, in order."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """Tensors among the results, in order."""
        return [leaf for leaf in tree_leaves(self.output) if isinstance(leaf, Tensor)]


class _Recorder(TorchDispatchMode):
    """Keeps every operation, and with it every tensor, so that the id of a tensor is never used again."""

    def __init__(self) -> None:
        super().__init__()
        self.every: list[Operation] = []
        self.steps: list[Operation] = []
        self._source: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operation = Operation(func, args, kwargs or {}, output)
        self.every.append(operation)
        if operation.name in _COPIES and len(operation.inputs) == 1:
            self._source[id(output)] = self.key(operation.inputs[0])
        else:
            self.steps.append(operation)
        return output

    def key(self, tensor: Tensor) -> int:
        """The same for a tensor and for its copies."""
        return self._source.get(id(tensor), id(tensor))


class Pair:
    """The same operation in both networks, as the rules see it.

    Args:
        wide: the operation in the wide network.
        narrow: the operation in the narrow network.
        layouts_of: layouts of the axes of a tensor of the wide network.
    """

    def __init__(self, wide: Operation, narrow: Operation, layouts_of: Callable[[Tensor], list[Layout]]) -> None:
        self.wide, self.narrow, self.layouts_of = wide, narrow, layouts_of

    def layouts(self, index: int) -> list[Layout]:
        """Layouts of the axes of the tensor that is positional argument `index`."""
        return self.layouts_of(self.wide.args[index])

    def argument(self, index: int, default: Any = None) -> tuple[Any, Any]:
        """A positional argument in the wide and in the narrow network."""
        wide, narrow = (o.args[index] if len(o.args) > index else default for o in (self.wide, self.narrow))
        return wide, narrow

    def output_sizes(self, index: int = 0) -> list[tuple[int, int]]:
        """Sizes of each axis of an output in the wide and in the narrow network."""
        return _sizes(self.wide.outputs[index], self.narrow.outputs[index])

    def fresh(self, index: int = 0) -> list[Layout]:
        """Layouts of an output of which nothing is known but its sizes."""
        return [Layout(*size) for size in self.output_sizes(index)]


def trace_layouts(
    architecture: str, teacher: nn.Module, student: nn.Module, inputs: Sequence[Tensor]
) -> dict[str, list[Layout]]:
    """For each parameter and buffer the layouts of its axes.

    Args:
        architecture: name quoted in errors.
        teacher: wide network.
        student: narrow network.
        inputs: positional arguments of the forward pass, the same for both.

    Raises:
        ChannelMapError: the networks do not run in step, or an operation has no rule or contradicts the others.
    """
    networks, wide, narrow = _record_both(teacher, student, inputs)
    if [o.name for o in wide.steps] != [o.name for o in narrow.steps]:
        raise ChannelMapError(f"{architecture}: the wide and the narrow network do not carry out the same operations")
    lockstep = _Lockstep(wide, narrow)
    wide_tensors, narrow_tensors = map(tensors_of, networks)
    named = {name: lockstep.meet(tensor, narrow_tensors[name]) for name, tensor in wide_tensors.items()}
    for number, (w, n) in enumerate(zip(wide.steps, narrow.steps, strict=True)):
        try:
            lockstep.relate(w, n)
        except LayoutError as error:
            shapes = " and ".join(str([tuple(t.shape) for t in o.inputs]) for o in (w, n))
            raise ChannelMapError(
                f"{architecture}: no channel map: operation {number} ({w.name}) on {shapes}: {error}"
            ) from None
    return named


def _record_both(
    teacher: nn.Module, student: nn.Module, inputs: Sequence[Tensor]
) -> tuple[tuple[nn.Module, nn.Module], _Recorder, _Recorder]:
    """Record both networks, without memory for their values where they do not read them.

    Evaluation mode comes first; a network that loops over its channels there (ECBSR) is in step in training mode only.
    """
    shadows = without_weights(teacher), without_weights(student)
    attempts = [(shadows, [x.to("meta") for x in inputs]), ((teacher, student), list(inputs))]
    for networks, values in attempts:
        for training in (False, True):
            try:
                wide, narrow = (_record(network, values, training) for network in networks)
            except (RuntimeError, NotImplementedError):
                if networks is not shadows:
                    raise
                continue
            if [o.name for o in wide.steps] == [o.name for o in narrow.steps]:
                return networks, wide, narrow
    return (teacher, student), wide, narrow


@torch.no_grad()
def _record(network: nn.Module, inputs: Sequence[Tensor], training: bool) -> _Recorder:
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(training)
    with _Recorder() as recorder:
        network(*(x.clone() for x in inputs))
    network.train(was_training)
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])
    return recorder


def _sizes(wide: Tensor, narrow: Tensor) -> list[tuple[int, int]]:
    if wide.dim() != narrow.dim():
        raise LayoutError(f"a tensor of {wide.dim()} axes is one of {narrow.dim()} in the narrow network")
    return list(zip(wide.shape, narrow.shape, strict=True))


class _Lockstep:
    """The layouts of all tensors seen so far."""

    def __init__(self, wide: _Recorder, narrow: _Recorder) -> None:
        self._wide, self._narrow = wide, narrow
        self._layouts: dict[int, list[Layout]] = {}
        self._partners: dict[int, int] = {}

    def layouts_of(self, tensor: Tensor) -> list[Layout]:
        """Layouts of the axes of a tensor of the wide network."""
        return self._layouts[self._wide.key(tensor)]

    def meet(self, wide: Tensor, narrow: Tensor) -> list[Layout]:
        """Layouts of a tensor; new ones if it is seen for the first time."""
        key, partner = self._wide.key(wide), self._narrow.key(narrow)
        if self._partners.setdefault(key, partner) != partner:
            raise LayoutError("the two networks use different tensors")
        return self._layouts.setdefault(key, [Layout(*size) for size in _sizes(wide, narrow)])

    def relate(self, wide: Operation, narrow: Operation) -> None:
        """Apply the rule of an operation."""
        for w, n in zip(wide.inputs, narrow.inputs, strict=True):
            self.meet(w, n)
        pairs = zip(wide.inputs + wide.outputs, narrow.inputs + narrow.outputs, strict=True)
        if all(w.shape == n.shape for w, n in pairs):
            results = [[Layout(size, size) for size in output.shape] for output in wide.outputs]
        else:
            rule = RULES.get(wide.name)
            if rule is None and torch.Tag.pointwise not in wide.op.tags:
                raise LayoutError("no rule for this operation on an axis that depends on the width")
            results = (rule or pointwise)(Pair(wide, narrow, self.layouts_of))
        for w, n, layouts in zip(wide.outputs, narrow.outputs, results, strict=True):
            if [layout.size for layout in layouts] != _sizes(w, n):
                raise LayoutError(f"the rule gives {[layout.size for layout in layouts]}, not {_sizes(w, n)}")
            for before, after in zip(self.meet(w, n), layouts, strict=True):
                unify(before, after)
