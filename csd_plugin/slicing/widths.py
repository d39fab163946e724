"""From a width ratio to the options of the narrow backbone.

Ratios stand in option files only; everything behind `narrow_options` works with integer channel counts.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from csd_plugin.errors import OptionError, suggestion


@dataclass(frozen=True)
class BackboneSpec:
    """What the package knows of an architecture beyond its constructor.

    Attributes:
        width_args: names of the constructor arguments that hold a channel count, or a list of them, to be scaled.
        divisor_arg: name of an argument that divides the width inside the network (RCAN's `squeeze_factor`), quoted
            in the error when the division leaves no channel.
        frames: name of the argument for the number of frames, or the number itself, of a video network.
        side: height and width of the smallest input that runs.
        multiple: what height and width of an input must be a multiple of, or a function from the complete options
            to that.
    """

    width_args: tuple[str, ...]
    divisor_arg: str | None = None
    frames: str | int | None = None
    side: int = 8
    multiple: int | Callable[[Mapping[str, Any]], int] = 1


def _unshuffle_of_rrdbnet(options: Mapping[str, Any]) -> int:
    """BasicSR's RRDBNet folds the pixels of an x2 or x1 network into channels first."""
    return {2: 2, 1: 4}.get(options["scale"], 1)


BACKBONES: dict[str, BackboneSpec] = {
    "BasicVSR": BackboneSpec(("num_feat",), frames=2, side=33),
    "BasicVSRPlusPlus": BackboneSpec(("mid_channels",), frames=3, side=64),
    "CARN": BackboneSpec(("num_feat",)),
    "DUF": BackboneSpec(()),
    "ECBSR": BackboneSpec(("num_channel",)),
    "EDSR": BackboneSpec(("num_feat",)),
    "EDVR": BackboneSpec(("num_feat",), frames="num_frame", multiple=4),
    "MSRResNet": BackboneSpec(("num_feat",)),
    "RCAN": BackboneSpec(("num_feat",), divisor_arg="squeeze_factor"),
    "RIDNet": BackboneSpec(("mid_channels",)),
    "RRDBNet": BackboneSpec(("num_feat", "num_grow_ch"), multiple=_unshuffle_of_rrdbnet),
    "SRVGGNetCompact": BackboneSpec(("num_feat",)),
    "SpyNet": BackboneSpec(()),
    "SwinIR": BackboneSpec(("embed_dim", "num_heads")),
    "TOFlow": BackboneSpec(()),
}

ExampleInput = Sequence[Any] | Mapping[str, Any]

_CHANNEL_ARGS = ("num_in_ch", "in_channels", "in_chans")


def register_backbone(name: str, spec: BackboneSpec) -> None:
    """Make the width arguments of an architecture of one's own known, instead of naming them in each option file.

    Args:
        name: name under which the architecture is registered with BasicSR.
        spec: what there is to know of it.

    Raises:
        KeyError: another spec has been registered for it.
    """
    if BACKBONES.setdefault(name, spec) != spec:
        raise KeyError(f"{name} has another spec already: {BACKBONES[name]}")


def scaled_channels(channels: int, width: float) -> int:
    """Number of channels of a layer at a width: `int(channels * width)`, the paper's rule.

    Args:
        channels: channel count of the teacher's layer.
        width: ratio in (0, 1].

    Returns:
        The channel count rounded down; products that are an integer but for float rounding (0.29 * 100) stay it.
    """
    return int(channels * width + 1e-6)


def check_width(width: object, name: str = "network_g:width") -> float:
    """Return `width` as a float in (0, 1].

    Args:
        width: the ratio as read from the options.
        name: option path quoted in the error.

    Raises:
        OptionError: not a number, or outside (0, 1].
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 1:
        raise OptionError(f"expected a ratio in (0, 1], got {width!r} (option {name})")
    return float(width)


def architecture(name: str) -> type[nn.Module]:
    """The class registered with BasicSR under `name`, with or without BasicSR's own name suffix.

    Raises:
        OptionError: nothing of that name is registered.
    """
    for key in (name, f"{name}_basicsr"):
        if key in ARCH_REGISTRY:
            return ARCH_REGISTRY.get(key)
    near = suggestion(name, (key for key, _ in ARCH_REGISTRY))
    raise OptionError(f"no architecture {name!r} is registered{near} (option network_g:backbone:type)")


def backbone_options(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of the backbone's constructor: the given ones and the defaults of the others.

    Args:
        backbone: option block with the key `type`.

    Returns:
        A new dict that still holds `type`; the argument is not changed.

    Raises:
        OptionError: `type` missing or unknown, or an argument unknown or missing.
    """
    if not isinstance(backbone, Mapping) or "type" not in backbone:
        raise OptionError("expected a mapping with the key 'type' (option network_g:backbone)")
    given = {key: deepcopy(value) for key, value in backbone.items() if key != "type"}
    signature = inspect.signature(architecture(backbone["type"]))
    variadic = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
    for key in given:
        if key not in signature.parameters and not variadic:
            raise OptionError(f"unknown option network_g:backbone:{key}{suggestion(key, signature.parameters)}")
    try:
        bound = signature.bind(**given)
    except TypeError as error:
        raise OptionError(f"{backbone['type']}: {error} (option network_g:backbone)") from None
    bound.apply_defaults()
    options: dict[str, Any] = {"type": backbone["type"]}
    for key, value in bound.arguments.items():
        options.update(value if key in variadic else {key: value})
    return options


def build_backbone(options: Mapping[str, Any]) -> nn.Module:
    """A stock network.

    Args:
        options: `type` and the constructor's arguments.

    Raises:
        OptionError: the constructor fails.
    """
    network = architecture(options["type"])
    arguments = {key: value for key, value in options.items() if key != "type"}
    try:
        return network(**arguments)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(f"{options['type']} cannot be built: {reason} (option network_g:backbone)") from error


def width_arguments(backbone: Mapping[str, Any], width_args: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the arguments that set the width of this backbone.

    Args:
        backbone: complete options as `backbone_options` gives them.
        width_args: names chosen by the user; None takes the ones known for the architecture.

    Raises:
        OptionError: the architecture is not known and no name was given, or a name is not an integer argument.
    """
    name = backbone["type"]
    if width_args is None:
        spec = BACKBONES.get(name)
        if spec is None:
            known = ", ".join(key for key, value in BACKBONES.items() if value.width_args)
            raise OptionError(
                f"the width argument of {name} is not known: name it in network_g:width_args (known for: {known})"
            )
        if not spec.width_args:
            raise OptionError(f"{name} has no width to split (option network_g:backbone:type)")
        width_args = spec.width_args
    for key in width_args:
        value = backbone.get(key)
        counts = list(value) if isinstance(value, list | tuple) else [value]
        if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts):
            raise OptionError(
                f"expected a positive channel count in {key}, got {value!r} (option network_g:backbone:{key})"
            )
    return tuple(width_args)


def narrow_options(
    backbone: Mapping[str, Any], width: float, width_args: Sequence[str] | None = None
) -> dict[str, Any]:
    """Options of the stock backbone that is as wide as the student.

    Args:
        backbone: complete options of the teacher.
        width: ratio in (0, 1].
        width_args: see `width_arguments`.

    Raises:
        OptionError: the width leaves an argument without a channel.
    """
    narrow = dict(backbone)
    for key in width_arguments(backbone, width_args):
        value = backbone[key]
        counts = [scaled_channels(n, width) for n in (value if isinstance(value, list | tuple) else [value])]
        narrow[key] = counts if isinstance(value, list | tuple) else counts[0]
        if 0 in counts:
            raise OptionError(
                f"width {width:g} leaves {backbone['type']} {key}: {value} without a channel (option network_g:width)"
            )
    return narrow


def example_inputs(backbone: Mapping[str, Any], example_input: ExampleInput | None = None) -> tuple[Any, ...]:
    """The arguments of a small forward pass: random values in 0..1, the same in every call.

    Args:
        backbone: complete options.
        example_input: shapes chosen by the user. One shape, or a mapping from names to shapes, is one argument: a
            tensor, or a dict of tensors. A list of these is several arguments. None takes one image (1, C, H, W), or
            clip (1, T, C, H, W), of the size known for the architecture.

    Raises:
        OptionError: `example_input` is none of these.
    """
    if example_input is None:
        example_input = _example_shape(backbone)
    several = isinstance(example_input, list | tuple) and len(example_input) > 0 and not _is_shape(example_input)
    generator = torch.Generator().manual_seed(0)

    def filled(shapes: Any) -> Any:
        if _is_shape(shapes):
            return torch.rand(*shapes, generator=generator)
        if isinstance(shapes, Mapping) and shapes:
            return {key: filled(value) for key, value in shapes.items()}
        raise OptionError(
            f"expected a shape, names with shapes, or a list of them, got {shapes!r} (option network_g:example_input)"
        )

    return tuple(filled(argument) for argument in (example_input if several else [example_input]))


def size_multiple(backbone: Mapping[str, Any]) -> int:
    """What height and width of an input must be a multiple of, an attention window for example.

    Args:
        backbone: complete options.
    """
    window = backbone.get("window_size")
    multiple = BACKBONES.get(backbone["type"], BackboneSpec(())).multiple
    if callable(multiple):
        multiple = multiple(backbone)
    return math.lcm(multiple, window) if isinstance(window, int) else multiple


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(n) is int and n > 0 for n in value)


def _example_shape(backbone: Mapping[str, Any]) -> tuple[int, ...]:
    spec = BACKBONES.get(backbone["type"], BackboneSpec(()))
    channels = next((backbone[key] for key in _CHANNEL_ARGS if isinstance(backbone.get(key), int)), 3)
    side = math.lcm(spec.side, size_multiple(backbone))
    frames = backbone[spec.frames] if isinstance(spec.frames, str) else spec.frames
    return (1, channels, side, side) if frames is None else (1, frames, channels, side, side)


def check_no_empty_layer(
    network: nn.Module, options: Mapping[str, Any], width: float, width_args: Sequence[str] | None = None
) -> None:
    """Refuse a narrow network in which a layer has 0 channels, as RCAN's attention at 8 channels and squeeze 16.

    Raises:
        OptionError: naming the layer and the argument to change.
    """
    empty = next((name for name, p in network.named_parameters() if 0 in p.shape), None)
    if empty is None:
        return
    key = width_arguments(options, width_args)[0]
    spec = BACKBONES.get(options["type"])
    advice = "raise network_g:width"
    if spec is not None and spec.divisor_arg is not None:
        advice += f" or lower network_g:backbone:{spec.divisor_arg} ({options.get(spec.divisor_arg)})"
    raise OptionError(
        f"width {width:g} makes {options['type']} {key}: {options[key]}, which leaves 0 channels in {empty}: {advice}"
    )
