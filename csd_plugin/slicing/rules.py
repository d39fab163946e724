"""What each aten operation says about the layouts of its inputs and outputs.

A rule takes the operation in both networks and returns, for each output, the layout of every axis. It states equalities
with `unify` and structure with `cut` and `factor`. An element-wise operation needs no rule of its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from csd_plugin.slicing.layout import Layout, LayoutError, concatenation, cut, factor, product, unify

if TYPE_CHECKING:
    from csd_plugin.slicing.trace import Pair

Layouts = list[list[Layout]]
Rule = Callable[["Pair"], Layouts]
RULES: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule under the schema names of its operations."""

    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return enter


@rule_for("aten::copy_", "aten::_prelu_kernel")
def pointwise(pair: "Pair") -> Layouts:
    """Broadcasting: axes that meet are equal."""
    results = []
    for index in range(len(pair.wide.outputs)):
        layouts = pair.fresh(index)
        for tensor in pair.wide.inputs:
            own = pair.layouts_of(tensor)
            for layout, result in zip(own, layouts[len(layouts) - len(own) :], strict=True):
                if layout.size != (1, 1) or result.size == (1, 1):
                    unify(layout, result)
        results.append(layouts)
    return results


@rule_for("aten::_softmax", "aten::_log_softmax")
def _same_layout(pair: "Pair") -> Layouts:
    return [pair.layouts(0)]


@rule_for(
    "aten::avg_pool2d",
    "aten::max_pool2d_with_indices",
    "aten::_adaptive_avg_pool2d",
    "aten::constant_pad_nd",
    "aten::reflection_pad2d",
    "aten::replication_pad2d",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::upsample_bicubic2d",
    "aten::grid_sampler_2d",
    "aten::roll",
    "aten::flip",
)
def _channelwise(pair: "Pair") -> Layouts:
    """Works on other axes than those that depend on the width."""
    if pair.wide.name in ("aten::roll", "aten::flip"):
        moved = pair.wide.args[-1]
        if any(pair.layouts(0)[d].wide != pair.layouts(0)[d].narrow for d in moved):
            raise LayoutError("moves channels")
    results = []
    for index in range(len(pair.wide.outputs)):
        layouts = pair.fresh(index)
        for before, after in zip(pair.layouts(0), layouts, strict=True):
            if before.size == after.size:
                unify(before, after)
            elif after.form != "same" or before.form != "same":
                raise LayoutError("changes the number of channels")
        results.append(layouts)
    return results


@rule_for("aten::new_zeros", "aten::zeros", "aten::zeros_like", "aten::ones", "aten::ones_like", "aten::new_ones")
@rule_for("aten::full", "aten::full_like", "aten::new_full", "aten::empty", "aten::new_empty", "aten::empty_like")
def _constant(pair: "Pair") -> Layouts:
    return [pair.fresh()]


def _unify_bias(pair: "Pair", index: int, layout: Layout) -> None:
    if isinstance(pair.argument(index)[0], Tensor):
        unify(pair.layouts(index)[0], layout)


def _grouped(channel: Layout, weight: list[Layout], groups: tuple[int, int]) -> Layout:
    """Layout of the output channels of a convolution whose input channels have the layout `channel`."""
    if groups == (1, 1):
        unify(channel, weight[1])
        return weight[0]
    if weight[1].size == (1, 1):
        outer, _ = factor(weight[0], groups)
        unify(outer, channel)
        return weight[0]
    _, inner = factor(channel, groups)
    unify(inner, weight[1])
    factor(weight[0], groups)
    return weight[0]


@rule_for("aten::convolution")
def _convolution(pair: "Pair") -> Layouts:
    image, weight = pair.layouts(0), pair.layouts(1)
    groups, transposed = pair.argument(8), pair.argument(6)[0]
    if transposed:
        if groups != (1, 1):
            raise LayoutError("no rule for grouped transposed convolution")
        unify(image[1], weight[0])
        channel = weight[1]
    else:
        channel = _grouped(image[1], weight, groups)
    _unify_bias(pair, 2, channel)
    return [[image[0], channel, *pair.fresh()[2:]]]


@rule_for("torchvision::deform_conv2d")
def _deformable_convolution(pair: "Pair") -> Layouts:
    image, weight = pair.layouts(0), pair.layouts(1)
    offset_groups = pair.argument(12)
    if offset_groups[0] != offset_groups[1]:
        raise LayoutError("the number of offset groups depends on the width")
    if offset_groups[0] > 1:
        factor(image[1], offset_groups)
    channel = _grouped(image[1], weight, pair.argument(11))
    _unify_bias(pair, 4, channel)
    return [[image[0], channel, *pair.fresh()[2:]]]


@rule_for("aten::addmm")
def _addmm(pair: "Pair") -> Layouts:
    bias, a, b = (pair.layouts(i) for i in range(3))
    unify(a[1], b[0])
    unify(bias[-1], b[1])
    return [[a[0], b[1]]]


@rule_for("aten::mm")
def _mm(pair: "Pair") -> Layouts:
    a, b = pair.layouts(0), pair.layouts(1)
    unify(a[1], b[0])
    return [[a[0], b[1]]]


@rule_for("aten::bmm")
def _bmm(pair: "Pair") -> Layouts:
    a, b = pair.layouts(0), pair.layouts(1)
    unify(a[0], b[0])
    unify(a[2], b[1])
    return [[a[0], a[1], b[2]]]


@rule_for("aten::linear")
def _linear(pair: "Pair") -> Layouts:
    x, weight = pair.layouts(0), pair.layouts(1)
    unify(x[-1], weight[1])
    _unify_bias(pair, 2, weight[0])
    return [[*x[:-1], weight[0]]]


@rule_for("aten::native_layer_norm")
def _layer_norm(pair: "Pair") -> Layouts:
    x = pair.layouts(0)
    normalised = len(pair.argument(1)[0])
    for index in (2, 3):
        if isinstance(pair.argument(index)[0], Tensor):
            for layout, axis in zip(pair.layouts(index), x[-normalised:], strict=True):
                unify(layout, axis)
    return [x, *(pair.fresh(i) for i in range(1, len(pair.wide.outputs)))]


@rule_for("aten::native_group_norm")
@rule_for("aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::_native_batch_norm_legit_no_training")
@rule_for("aten::cudnn_batch_norm", "aten::_batch_norm_with_update")
def _per_channel_norm(pair: "Pair") -> Layouts:
    x = pair.layouts(0)
    for tensor in pair.wide.inputs[1:]:
        unify(pair.layouts_of(tensor)[0], x[1])
    rest = [pair.fresh(i) for i in range(1, len(pair.wide.outputs))]
    return [x, *rest]


@rule_for("aten::view")
def _view(pair: "Pair") -> Layouts:
    """Axes are split and merged in row-major order."""
    pending = [layout for layout in reversed(pair.layouts(0)) if layout.size != (1, 1)]
    result = []
    for wide, narrow in pair.output_sizes():
        parts: list[Layout] = []
        while (wide, narrow) != (1, 1):
            if not pending:
                raise LayoutError("the axes do not multiply to the same")
            part = pending.pop()
            if wide % part.wide or narrow % part.narrow:
                part, rest = factor(part, (wide, narrow))
                pending.append(rest)
            parts.append(part)
            wide, narrow = wide // part.wide, narrow // part.narrow
        result.append(product(parts))
    return [result]


@rule_for("aten::t")
def _transpose_matrix(pair: "Pair") -> Layouts:
    return [list(reversed(pair.layouts(0)))]


@rule_for("aten::transpose")
def _transpose(pair: "Pair") -> Layouts:
    layouts = list(pair.layouts(0))
    a, b = pair.wide.args[1:3]
    layouts[a], layouts[b] = layouts[b], layouts[a]
    return [layouts]


@rule_for("aten::permute")
def _permute(pair: "Pair") -> Layouts:
    return [[pair.layouts(0)[d] for d in pair.wide.args[1]]]


@rule_for("aten::unsqueeze")
def _unsqueeze(pair: "Pair") -> Layouts:
    layouts = list(pair.layouts(0))
    layouts.insert(pair.wide.args[1] % (len(layouts) + 1), Layout(1, 1))
    return [layouts]


@rule_for("aten::squeeze")
def _squeeze(pair: "Pair") -> Layouts:
    layouts = pair.layouts(0)
    dims = pair.wide.args[1] if len(pair.wide.args) > 1 else range(len(layouts))
    chosen = {d % len(layouts) for d in ([dims] if isinstance(dims, int) else dims)}
    return [[layout for d, layout in enumerate(layouts) if d not in chosen or layout.size != (1, 1)]]


@rule_for("aten::expand")
def _expand(pair: "Pair") -> Layouts:
    result = pair.fresh()
    own = pair.layouts(0)
    for layout, wanted in zip(own, result[len(result) - len(own) :], strict=True):
        if layout.size != (1, 1):
            unify(layout, wanted)
    return [result]


@rule_for("aten::repeat")
def _repeat(pair: "Pair") -> Layouts:
    times = pair.argument(1)
    own = pair.layouts(0)
    own = [Layout(1, 1)] * (len(times[0]) - len(own)) + own
    return [[product([Layout(w, n), layout]) for w, n, layout in zip(*times, own, strict=True)]]


@rule_for("aten::slice")
def _slice(pair: "Pair") -> Layouts:
    layouts = list(pair.layouts(0))
    d = pair.argument(1, 0)[0]
    if layouts[d].wide == layouts[d].narrow and layouts[d].form == "same":
        layouts[d] = pair.fresh()[d]
        return [layouts]
    if pair.argument(4, 1) != (1, 1):
        raise LayoutError("takes every other channel")
    total = layouts[d].size
    starts = [_position(s, 0, n) for s, n in zip(pair.argument(2), total, strict=True)]
    ends = [_position(e, n, n) for e, n in zip(pair.argument(3), total, strict=True)]
    sizes = [
        (starts[0], starts[1]),
        (ends[0] - starts[0], ends[1] - starts[1]),
        (total[0] - ends[0], total[1] - ends[1]),
    ]
    pieces = cut(layouts[d], [size for size in sizes if size != (0, 0)])
    layouts[d] = pieces[0 if sizes[0] == (0, 0) else 1]
    return [layouts]


def _position(value: int | None, default: int, size: int) -> int:
    if value is None:
        return default
    return min(value + size if value < 0 else value, size)


@rule_for("aten::select")
def _select(pair: "Pair") -> Layouts:
    layouts = list(pair.layouts(0))
    removed = layouts.pop(pair.wide.args[1])
    if removed.wide != removed.narrow:
        raise LayoutError("takes a single channel of an axis that depends on the width")
    return [layouts]


@rule_for("aten::unbind")
def _unbind(pair: "Pair") -> Layouts:
    layouts = list(pair.layouts(0))
    layouts.pop(pair.argument(1, 0)[0])
    return [layouts for _ in pair.wide.outputs]


@rule_for("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unsafe_split")
def _split(pair: "Pair") -> Layouts:
    layouts = pair.layouts(0)
    d = pair.argument(2, 0)[0] % len(layouts)
    pieces = cut(layouts[d], [pair.output_sizes(i)[d] for i in range(len(pair.wide.outputs))])
    return [[*layouts[:d], piece, *layouts[d + 1 :]] for piece in pieces]


@rule_for("aten::cat")
def _cat(pair: "Pair") -> Layouts:
    parts = [pair.layouts_of(t) for t in pair.wide.args[0]]
    parts = [p for p in parts if len(p) == len(pair.output_sizes())]
    d = pair.argument(1, 0)[0] % len(parts[0])
    return [_joined(parts, d, concatenation([p[d] for p in parts]))]


@rule_for("aten::stack")
def _stack(pair: "Pair") -> Layouts:
    parts = [pair.layouts_of(t) for t in pair.wide.args[0]]
    d = pair.argument(1, 0)[0] % (len(parts[0]) + 1)
    parts = [[*p[:d], Layout(1, 1), *p[d:]] for p in parts]
    return [_joined(parts, d, Layout(len(parts), len(parts)))]


def _joined(parts: Layouts, d: int, joined: Layout) -> list[Layout]:
    for other in parts[1:]:
        for axis, (a, b) in enumerate(zip(parts[0], other, strict=True)):
            if axis != d:
                unify(a, b)
    return [*parts[0][:d], joined, *parts[0][d + 1 :]]


@rule_for("aten::pixel_shuffle")
def _pixel_shuffle(pair: "Pair") -> Layouts:
    *batch, channel, _, _ = pair.layouts(0)
    r = pair.wide.args[1]
    outer, _ = factor(channel, (channel.wide // r**2, channel.narrow // r**2))
    return [[*batch, outer, *pair.fresh()[-2:]]]


@rule_for("aten::pixel_unshuffle")
def _pixel_unshuffle(pair: "Pair") -> Layouts:
    *batch, channel, _, _ = pair.layouts(0)
    r = pair.wide.args[1]
    return [[*batch, product([channel, Layout(r**2, r**2)]), *pair.fresh()[-2:]]]


@rule_for("aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::linalg_vector_norm", "aten::var")
def _reduce(pair: "Pair") -> Layouts:
    layouts = pair.layouts(0)
    position = 2 if pair.wide.name == "aten::linalg_vector_norm" else 1
    dims = pair.argument(position)[0]
    if dims is None:
        return [pair.fresh()]
    reduced = {d % len(layouts) for d in ([dims] if isinstance(dims, int) else dims)}
    kept = len(pair.output_sizes()) == len(layouts)
    return [[Layout(1, 1) if d in reduced else x for d, x in enumerate(layouts) if kept or d not in reduced]]


@rule_for("aten::index")
def _index(pair: "Pair") -> Layouts:
    """Indices into leading axes that do not depend on the width."""
    layouts = pair.layouts(0)
    indices = pair.wide.args[1]
    if any(index is None for index in indices) or any(x.wide != x.narrow for x in layouts[: len(indices)]):
        raise LayoutError("picks channels by an index")
    rest = layouts[len(indices) :]
    return [[*pair.fresh()[: len(pair.output_sizes()) - len(rest)], *rest]]
