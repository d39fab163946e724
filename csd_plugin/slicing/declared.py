"""Channel maps that a user declares, for networks that the trace cannot follow. They are proved like any other."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from csd_plugin.errors import OptionError, suggestion
from csd_plugin.slicing.channel_map import Shapes
from csd_plugin.slicing.layout import Layout, LayoutError, channels, concatenation
from csd_plugin.slicing.widths import scaled_channels

Declaration = Mapping[str, Mapping[int, Sequence[int | str]]]


def declared_channels(
    declaration: Declaration, wide: Shapes, narrow: Shapes, width: float
) -> dict[tuple[str, int], np.ndarray]:
    """The teacher's channels on each declared axis.

    Args:
        declaration: for a dotted parameter name or pattern (`body.*.weight`) and an axis, the teacher's channels as
            consecutive parts. A number is a part that scales with the width, of which the student takes the first
            channels; a text such as `=3` is a part that both have whole.
        wide: shapes of the teacher's tensors.
        narrow: shapes of the student's tensors.
        width: the student's ratio.

    Returns:
        Channels, int64, by parameter name and axis.

    Raises:
        OptionError: a name matches nothing, or the parts do not make up the axis.
    """
    result = {}
    for pattern, axes in declaration.items():
        names = [name for name in wide if fnmatchcase(name, pattern)]
        if not names:
            raise OptionError(
                f"no parameter is named {pattern}{suggestion(pattern, wide)} (option network_g:channel_map)"
            )
        for name in names:
            for axis, parts in axes.items():
                sizes = [_sizes(part, width) for part in parts]
                try:
                    layout = concatenation([Layout(*size) for size in sizes])
                    found = layout.size
                except LayoutError:
                    found = (0, 0)
                if not 0 <= axis < len(wide[name]) or found != (wide[name][axis], narrow[name][axis]):
                    raise OptionError(
                        f"{list(parts)} does not make up axis {axis} of {name}, {tuple(wide[name])} in the teacher and "
                        f"{tuple(narrow[name])} in the student (option network_g:channel_map)"
                    )
                result[name, axis] = channels(layout)
    return result


def _sizes(part: int | str, width: float) -> tuple[int, int]:
    fixed = isinstance(part, str) and part.startswith("=") and part[1:].isdigit()
    if fixed:
        return int(str(part)[1:]), int(str(part)[1:])
    if isinstance(part, bool) or not isinstance(part, int) or part < 1:
        raise OptionError(
            f"expected a number of channels or a text such as =3, got {part!r} (option network_g:channel_map)"
        )
    return part, scaled_channels(part, width)
