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
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csd_plugin.errors import ChannelMapError
from csd_plugin.slicing.layout import Layout, LayoutError, unify
from csd_plugin.slicing.rules import RULES, pointwise
from csd_plugin.slicing.structure import Inputs, each_tensor, tensors_of, unchanged

_COPIES = frozenset({"aten::clone", "aten::detach", "aten::alias", "aten::_to_copy", "aten::lift_fresh"})
_SMALL_CONSTANT = 64


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
    """Keeps every operation, and with it every tensor, so that the id of a tensor is never used again.

    Args:
        tensors: parameters and buffers by name.
        on_meta: whether they are without memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor], on_meta: bool) -> None:
        super().__init__()
        self.tensors = dict(tensors)
        self.on_meta = on_meta
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

    def program(self) -> list[tuple[Any, ...]]:
        """The steps without their values: operations, where their tensors come from, and all other arguments."""
        numbers = {self.key(tensor): number for number, tensor in enumerate(self.tensors.values())}

        def described(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            constant = ()
            if self.key(leaf) not in numbers and not leaf.is_meta and leaf.numel() <= _SMALL_CONSTANT:
                constant = tuple(leaf.flatten().tolist())
            return Tensor, numbers.setdefault(self.key(leaf), len(numbers)), constant

        program = []
        for step in self.steps:
            program.append((step.op, *step.kwargs, *map(described, tree_leaves((step.args, step.kwargs)))))
            for output in step.outputs:
                numbers.setdefault(self.key(output), len(numbers))
        return program

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


@dataclass(frozen=True)
class Trace:
    """What running two networks in lock-step has shown.

    Attributes:
        layouts: for each parameter and buffer the layouts of its axes.
        modes: the training modes to prove a map in; only one where both carry out the same operations in either.
    """

    layouts: Mapping[str, Sequence[Layout]]
    modes: tuple[bool, ...]


def trace(architecture: str, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> Trace:
    """Run the wide and the narrow network in lock-step.

    Args:
        architecture: name quoted in errors.
        teacher: wide network; it is not changed.
        student: narrow network; its parameters may hold no memory, and it is not changed.
        inputs: positional arguments of the forward pass, the same for both.

    Raises:
        ChannelMapError: the networks do not run in step, or an operation has no rule or contradicts the others.
    """
    try:
        wide, narrow, modes = _record_in_step(teacher, student, inputs)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ChannelMapError(f"{architecture}: the wide or the narrow network cannot run: {reason}") from error
    if not _in_step(wide, narrow):
        raise ChannelMapError(f"{architecture}: the wide and the narrow network do not carry out the same operations")
    lockstep = _Lockstep(wide, narrow)
    named = {name: lockstep.meet(tensor, narrow.tensors[name]) for name, tensor in wide.tensors.items()}
    for number, (w, n) in enumerate(zip(wide.steps, narrow.steps, strict=True)):
        try:
            lockstep.relate(w, n)
        except LayoutError as error:
            shapes = " and ".join(str([tuple(t.shape) for t in o.inputs]) for o in (w, n))
            raise ChannelMapError(
                f"{architecture}: no channel map: operation {number} ({w.name}) on {shapes}: {error}"
            ) from None
    return Trace(named, modes)


def _in_step(wide: "_Recorder", narrow: "_Recorder") -> bool:
    return [o.name for o in wide.steps] == [o.name for o in narrow.steps]


def _record_in_step(
    teacher: nn.Module, student: nn.Module, inputs: Inputs
) -> tuple["_Recorder", "_Recorder", tuple[bool, ...]]:
    """Records of both networks, in step if they ever are, and the modes to prove a map in.

    Evaluation mode comes first; a network that loops over its channels there (ECBSR) is in step in training mode only.
    They run without memory for their values where they do not read them.
    """
    failure: Exception | None = None
    for on_meta in (True, False):
        for training in (False, True):
            try:
                wide, narrow = (_record(network, inputs, training, on_meta) for network in (teacher, student))
            except Exception as error:
                failure = error
                continue
            if not _in_step(wide, narrow):
                failure = None
                continue
            if not training and _same_in_training(wide, teacher, inputs) and _same_in_training(narrow, student, inputs):
                return wide, narrow, (False,)
            return wide, narrow, (True, False)
    if failure is not None:
        raise failure
    return wide, narrow, (True, False)


def _same_in_training(record: "_Recorder", network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network computes the same in training mode as in evaluation mode, where it was recorded."""
    try:
        return _record(network, inputs, True, record.on_meta).program() == record.program()
    except Exception:
        return False


@torch.no_grad()
def _record(network: nn.Module, inputs: Inputs, training: bool, on_meta: bool) -> "_Recorder":
    stand_in = _without_memory if on_meta else _with_values
    recorder = _Recorder({name: stand_in(tensor) for name, tensor in tensors_of(network).items()}, on_meta)
    with unchanged(network):
        network.train(training)
        with recorder:
            functional_call(network, recorder.tensors, each_tensor(stand_in, inputs))
    return recorder


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _with_values(tensor: Tensor) -> Tensor:
    """A tensor of its own with the values of `tensor`, or with small random ones where it has none."""
    if tensor.is_meta:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype)
        return noise / max(1, tensor.shape[1:].numel())
    return tensor.detach().clone()


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
