"""CSSRNet: a channel-splitting super-resolution network around any BasicSR backbone (the paper, section 3.1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from csd_plugin.errors import ChannelMapError, OptionError
from csd_plugin.evaluation.complexity import count_macs
from csd_plugin.slicing.channel_map import (
    ChannelMap,
    check_same_layers,
    first_channels,
)
from csd_plugin.slicing.declared import Declaration, declared_channels
from csd_plugin.slicing.importance import Order, importance_order, permute_channels
from csd_plugin.slicing.layout import Layout
from csd_plugin.slicing.own_norms import OwnNorms, batch_norms, width_key
from csd_plugin.slicing.proof import prove
from csd_plugin.slicing.structure import Inputs, drop_buffers, drop_parameters, each_tensor, shapes_of, tensors_of
from csd_plugin.slicing.trace import trace
from csd_plugin.slicing.widths import (
    ExampleInput,
    architecture,
    backbone_options,
    build_backbone,
    check_no_empty_layer,
    check_width,
    example_inputs,
    narrow_options,
    size_multiple,
    width_arguments,
)

TEACHER = 1.0


class CSSRNet(nn.Module):
    """A teacher and its students in one set of weights.

    The teacher is the stock backbone. A student is the stock backbone built narrower and run, without weights of its
    own, on views of the teacher's weights. Parameters and `state_dict` are exactly the stock backbone's, so an official
    checkpoint loads strictly and a checkpoint of this network loads in the stock architecture. Only batch normalisation
    adds to them: each student has its own, under `student_norms`, which a stock checkpoint initialises.

    Construction leaves the global random state as the stock backbone's constructor would.

    Args:
        backbone: options of the teacher, `type` and the constructor's arguments.
        width: ratio of the student's channels to the teacher's in (0, 1), or several; the first is the default student.
        width_args: constructor arguments to scale; None takes the ones known for the architecture.
        channel_order: `stock` splits the teacher as it is; `importance` lets CSDModel permute a trained teacher
            first, so that the student starts from its most important channels.
        example_input: shape of a small input that the backbone can run on, or shapes of several, see
            `csd_plugin.slicing.widths.example_inputs`; None takes the one known for it.
        channel_map: what the trace cannot find out, see `csd_plugin.slicing.declared`: `fuse.weight: {1: [64, 64,
            "=3"]}` are two parts of an axis that scale and one of 3 that does not.

    Raises:
        OptionError: an argument is unknown or out of range, or a width leaves a layer without channels.
        ChannelMapError: the student cannot be proved to be a slice of the teacher.
    """

    teacher: nn.Module

    def __init__(
        self,
        backbone: Mapping[str, Any],
        width: float | Sequence[float],
        width_args: Sequence[str] | None = None,
        channel_order: Literal["stock", "importance"] = "stock",
        example_input: ExampleInput | None = None,
        channel_map: Declaration | None = None,
    ) -> None:
        super().__init__()
        self.widths = _checked_widths(width)
        teacher_options = backbone_options(backbone)
        self.options = {TEACHER: teacher_options} | {
            w: narrow_options(teacher_options, w, width_args) for w in self.widths
        }
        if channel_order not in ("stock", "importance"):
            raise OptionError(f"expected stock or importance, got {channel_order!r} (option network_g:channel_order)")
        self.channel_order = channel_order
        self._given = {*backbone, *width_arguments(teacher_options, width_args)}
        self._example_input = example_input
        teacher = build_backbone(teacher_options)
        self._compiles = False
        self._compiled: dict[float, Callable[..., Any]] = {}
        self._declaration = channel_map or {}
        self._students: dict[float, tuple[nn.Module, ChannelMap, OwnNorms]] = {}
        for w in self.widths:
            self._students[w] = self._split(teacher, w, width_args)

        # The wrapper registers the teacher's own children instead of the teacher, which keeps the stock names.
        object.__setattr__(self, "teacher", teacher)
        self._modules, self._parameters, self._buffers = dict(teacher._modules), teacher._parameters, teacher._buffers
        self._non_persistent_buffers_set = teacher._non_persistent_buffers_set
        norms = {width_key(w): norms for w, (_, _, norms) in self._students.items() if len(norms) > 0}
        if norms:
            self.student_norms = nn.ModuleDict(norms)
            self.register_load_state_dict_pre_hook(_fill_in_norms)
            self.load_state_dict(teacher.state_dict())

    @classmethod
    def from_options(cls, network_g: Mapping[str, Any]) -> "CSSRNet":
        """Build the network from the option block `network_g`, whose `type` is this class."""
        return cls(**{key: value for key, value in network_g.items() if key != "type"})

    @property
    def students(self) -> dict[float, str]:
        """Name of the student at each width: `student`, or `student_<width>` where there are several."""
        return {w: "student" if len(self.widths) == 1 else f"student_{w:g}" for w in self.widths}

    @property
    def size_multiple(self) -> int:
        """What height and width of an input must be a multiple of: SwinIR's attention window, for example, or 1."""
        return size_multiple(self.options[TEACHER])

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of a small forward pass, the same in every call, on the CPU."""
        return example_inputs(self.options[TEACHER], self._example_input)

    def forward(
        self, *inputs: Any, width: float | Sequence[float] | None = None, detach: Sequence[float] = (), **options: Any
    ) -> Any:
        """Super-resolve a batch.

        Args:
            inputs: what the stock backbone takes, in most cases low-resolution images (B, C, H, W) in 0..1, or clips
                (B, T, C, H, W). Teacher and students get the same.
            width: one width gives one output; a sequence gives a dict. None means every width in training mode and the
                default student in evaluation mode.
            detach: widths to run without a graph.
            options: keyword arguments for the backbone.

        Returns:
            What the stock backbone gives, in most cases images (B, C, scale * H, scale * W), or a dict from width to
            that with 1.0 for the teacher.

        Raises:
            ValueError: a width that this network does not have.
        """
        if width is None:
            width = (TEACHER, *self.widths) if self.training else self.widths[0]
        if not isinstance(width, Sequence):
            return self._run(width, inputs, options)
        outputs = {}
        for w in width:
            with torch.set_grad_enabled(torch.is_grad_enabled() and w not in detach):
                outputs[w] = self._run(w, inputs, options)
        return outputs

    def export(self, width: float) -> nn.Module:
        """An independent stock backbone equal to this network at `width`, on the same device and of the same dtype.

        Raises:
            ValueError: a width that this network does not have.
        """
        self._check_known(width)
        weights = self.teacher.state_dict()
        if width != TEACHER:
            weights = self._student_tensors(width, weights)
        with torch.random.fork_rng(devices=[]):
            network = build_backbone(self.options[width])
        network.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()}, assign=True)
        for exported, own in zip(network.parameters(), self.teacher.parameters(), strict=True):
            exported.requires_grad_(own.requires_grad)
        device = next(self.teacher.parameters()).device
        return network.to(device).train(self.training)

    def importance_order(self) -> Order:
        """Order of the teacher's channels, the most important first, for `permute_channels`.

        Raises:
            OptionError: the channel map is declared, not traced, so that what belongs together is not known.
        """
        if not self._layouts():
            raise OptionError("a declared channel map cannot be ordered (option network_g:channel_order)")
        return importance_order(dict(self.teacher.named_parameters()), self._layouts())

    def permute_channels(self, order: Order) -> None:
        """Permute the teacher's channels, which changes its students but not its own function.

        Args:
            order: from `importance_order` of this network or of one of the same structure.
        """
        permute_channels(tensors_of(self.teacher), self._layouts(), order)
        if "student_norms" in self._modules:
            self.load_state_dict(self.teacher.state_dict())  # the students' norms start from the teacher's anew

    def width_for(self, macs: float, size: tuple[int, int, int] = (3, 180, 320)) -> float:
        """The widest of this network's widths within a budget, to choose one at run time.

        Args:
            macs: multiply-accumulates for one image.
            size: channels, height and width of the image.

        Returns:
            A width, 1.0 for the teacher.

        Raises:
            ValueError: even the narrowest needs more.
        """
        cost = {w: count_macs(self.export(w), size) for w in sorted((TEACHER, *self.widths), reverse=True)}
        for width, needed in cost.items():
            if needed <= macs:
                return width
        raise ValueError(f"expected a budget of at least {min(cost.values())} MACs, got {macs}")

    def _layouts(self) -> Mapping[str, Sequence[Layout]]:
        return self._students[self.widths[0]][1].layouts

    def stock_options(self, width: float) -> dict[str, Any]:
        """The option block `network_g` of the stock backbone at `width`, as short as the teacher's was given.

        Raises:
            ValueError: a width that this network does not have.
        """
        self._check_known(width)
        return {key: value for key, value in self.options[width].items() if key in self._given}

    def train(self, mode: bool = True) -> "CSSRNet":
        """Set training or evaluation mode of the teacher and of every student."""
        super().train(mode)
        for network in (self.teacher, *(student for student, _, _ in self._students.values())):
            network.train(mode)
        return self

    def use_compiler(self) -> None:
        """Run teacher and students through torch.compile in training mode from now on."""
        self._compiles = True

    def extra_repr(self) -> str:
        """The widths, shown above the layers when the network is printed."""
        return f"widths={self.widths}"

    def _run(self, width: float, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._check_known(width)
        inputs = each_tensor(lambda tensor: tensor, inputs)  # a network may take things out of its dict
        if width == TEACHER:
            return self._caller(width)(self.teacher, {}, inputs, options)
        tensors = self._student_tensors(width, tensors_of(self.teacher))
        return self._caller(width)(self._students[width][0], tensors, inputs, options)

    def _caller(self, width: float) -> Callable[..., Any]:
        if not (self._compiles and self.training):
            return functional_call
        if width not in self._compiled:
            self._compiled[width] = torch.compile(functional_call)
        return self._compiled[width]

    def _student_tensors(self, width: float, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _, channel_map, norms = self._students[width]
        own = norms.tensors()
        return channel_map.slice({name: tensor for name, tensor in teacher.items() if name not in own}) | own

    def _check_known(self, width: float) -> None:
        if width != TEACHER and width not in self._students:
            raise ValueError(f"expected one of the widths {(TEACHER, *self.widths)}, got {width!r}")

    def _split(
        self, teacher: nn.Module, width: float, width_args: Sequence[str] | None
    ) -> tuple[nn.Module, ChannelMap, OwnNorms]:
        options = self.options[width]
        with torch.random.fork_rng(devices=[]):
            narrow = build_backbone(options)
        check_no_empty_layer(narrow, options, width, width_args)
        norms = batch_norms(narrow)
        drop_parameters(narrow)
        wide_shapes, narrow_shapes = shapes_of(teacher), shapes_of(narrow)
        check_same_layers(options["type"], wide_shapes, narrow_shapes)
        declared = declared_channels(self._declaration, wide_shapes, narrow_shapes, width)
        question = (self.options[TEACHER], options, self._example_input, sorted(self._declaration.items()))
        key = repr((architecture(options["type"]), question))
        if key not in _PROVED:
            _PROVED[key] = _proved_map(options["type"], teacher, narrow, self.example_inputs(), declared)
        channel_map = _PROVED[key]
        drop_buffers(narrow)
        return narrow, channel_map, OwnNorms(norms, channel_map)

    def _replicate_for_data_parallel(self) -> "CSSRNet":
        raise OptionError(
            "num_gpu above 1 needs one process a GPU: torchrun --nproc_per_node=N -m csd_plugin train -opt FILE "
            "--launcher pytorch (option num_gpu)"
        )


# Channel maps by everything that decides on them, so that the EMA copy of a network is not proved again.
_PROVED: dict[str, ChannelMap] = {}


def _proved_map(
    name: str,
    teacher: nn.Module,
    student: nn.Module,
    inputs: Inputs,
    declared: Mapping[tuple[str, int], np.ndarray],
) -> ChannelMap:
    """The channel map of a student: traced, or else the first channels, with what is declared in its place; proved."""
    modes: tuple[bool, ...] = (True, False)
    try:
        traced = trace(name, teacher, student, inputs)
        channel_map, modes = ChannelMap.from_layouts(traced.layouts, shapes_of(teacher)), traced.modes
    except ChannelMapError:
        if not declared:
            raise
        channel_map = first_channels(shapes_of(teacher), shapes_of(student))
    if declared:
        channel_map = channel_map.with_axes(declared)
    prove(name, teacher, student, channel_map, inputs, modes)
    return channel_map


def _fill_in_norms(net: CSSRNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for width, (_student, _map, norms) in net._students.items():
        norms.fill_in(state, prefix, f"{prefix}student_norms.{width_key(width)}.")


def _checked_widths(width: float | Sequence[float]) -> tuple[float, ...]:
    values = list(width) if isinstance(width, Sequence) and not isinstance(width, str) else [width]
    widths = tuple(check_width(value) for value in values)
    if not widths or len(set(widths)) != len(widths) or TEACHER in widths:
        raise OptionError(f"expected one or more different ratios below 1, got {width!r} (option network_g:width)")
    return widths
