"""Running a network on an image of any size, in tiles where memory is short."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from csd_plugin.models.inference import run_padded

OVERLAP = 32
_SMALLEST = 32
_SHARE = 0.6  # of free memory that a tile may take


@dataclass(frozen=True)
class Tile:
    """A part of an image along one axis.

    Attributes:
        start: where what is read begins.
        stop: where it ends.
        inner_start: where what is kept begins.
        inner_stop: where it ends.
    """

    start: int
    stop: int
    inner_start: int
    inner_stop: int


def tiles_along(length: int, side: int, overlap: int) -> Iterator[Tile]:
    """Tiles that keep every pixel once and see `overlap` pixels more on each side, or as far as the image goes."""
    count = -(-length // side)
    for number in range(count):
        first, last = length * number // count, length * (number + 1) // count
        yield Tile(max(0, first - overlap), min(length, last + overlap), first, last)


def run_in_tiles(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    scale: int,
    side: int | None,
    overlap: int = OVERLAP,
    multiple: int = 1,
) -> Tensor:
    """Super-resolve an image, tile by tile if it is larger than a tile.

    Without global layers the result equals the untiled one wherever `overlap` covers the receptive field.

    Args:
        network: from (B, C, h, w) to (B, C, scale * h, scale * w).
        x: (B, C, H, W) on the network's device.
        scale: upsampling factor.
        side: largest height and width of what a tile keeps; None takes the whole image.
        overlap: LR pixels that a tile sees beyond what it keeps.
        multiple: what height and width of an input must be a multiple of; tiles are mirrored up to it.

    Returns:
        (B, C, scale * H, scale * W) in float32 on the CPU.
    """
    height, width = x.shape[-2:]
    if side is None or side >= max(height, width):
        return run_padded(network, multiple, x).float().cpu()
    output = torch.empty(*x.shape[:2], height * scale, width * scale)
    for row in tiles_along(height, side, overlap):
        for column in tiles_along(width, side, overlap):
            part = x[..., row.start : row.stop, column.start : column.stop].contiguous()
            enlarged = run_padded(network, multiple, part)
            top, left = (row.inner_start - row.start) * scale, (column.inner_start - column.start) * scale
            high, wide = (t.inner_stop * scale - t.inner_start * scale for t in (row, column))
            output[
                ...,
                row.inner_start * scale : row.inner_stop * scale,
                column.inner_start * scale : column.inner_stop * scale,
            ] = enlarged[..., top : top + high, left : left + wide].float()
    return output


def fitting_side(bytes_per_pixel: float, free: int, overlap: int = OVERLAP) -> int:
    """Side of a tile that fits into memory.

    Args:
        bytes_per_pixel: what the network takes for each LR pixel.
        free: free bytes.
        overlap: LR pixels around it.
    """
    side = int((_SHARE * free / max(bytes_per_pixel, 1)) ** 0.5) - 2 * overlap
    return max(_SMALLEST, side)


def retrying(run: Callable[[int | None], Tensor], side: int | None, longest: int) -> tuple[Tensor, int | None]:
    """Run with smaller and smaller tiles while memory runs out.

    Args:
        run: from the side of a tile to the result.
        side: to begin with; None is the whole image.
        longest: longer side of the image.

    Returns:
        The result and the side that it was reached with.

    Raises:
        MemoryError: the smallest tile is too large.
    """
    while True:
        try:
            return run(side), side
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = (longest if side is None else side) // 2
            if smaller < _SMALLEST:
                raise MemoryError("even the smallest tile does not fit into memory") from None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            side = smaller


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
    is_kind = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return is_kind or any(phrase in text for phrase in phrases)


def free_memory(device: torch.device) -> int:
    """Free bytes of a device; of the CPU what the system can give without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2 if hasattr(os, "sysconf") else 2**31
