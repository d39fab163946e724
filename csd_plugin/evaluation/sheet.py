"""A sheet of crops side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL, _CAPTION, _GAP = 240, 22, 6
_BACKGROUND, _INK = (255, 255, 255), (20, 20, 20)


def most_different_patch(image: np.ndarray, reference: np.ndarray, size: int) -> tuple[int, int]:
    """Top left corner of the patch in which two pictures differ most in the mean.

    Args:
        image: (H, W, 3) uint8.
        reference: (H, W, 3) uint8.
        size: side of the patch.
    """
    return _strongest_window(np.abs(image.astype(np.float64) - reference.astype(np.float64)).mean(2), size)[:2]


def most_disputed_patch(images: Sequence[np.ndarray], size: int) -> tuple[int, int, float]:
    """Top left corner of the patch in which several pictures differ most from each other, and by how much.

    Args:
        images: two or more, (H, W, 3) uint8.
        size: side of the patch.

    Returns:
        Row, column, and the standard deviation over the pictures in the mean of the patch, in 0..255.
    """
    return _strongest_window(np.stack(images).astype(np.float32).std(0).mean(2), size)


def _strongest_window(difference: np.ndarray, size: int) -> tuple[int, int, float]:
    total = np.zeros((difference.shape[0] + 1, difference.shape[1] + 1))
    total[1:, 1:] = difference.cumsum(0).cumsum(1)
    windows = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top), int(left), float(windows[top, left]) / size**2


def crop_sheet(rows: Sequence[Mapping[str, np.ndarray]]) -> Image.Image:
    """One row of equally large cells for each mapping from caption to crop.

    Args:
        rows: crops (h, w, 3) uint8 BGR; each is enlarged without smoothing, so that its own pixels show.

    Returns:
        RGB picture.
    """
    columns = max(len(row) for row in rows)
    width = columns * (_CELL + _GAP) + _GAP
    height = len(rows) * (_CELL + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for i, row in enumerate(rows):
        top = _GAP + i * (_CELL + _CAPTION + _GAP)
        for j, (caption, crop) in enumerate(row.items()):
            left = _GAP + j * (_CELL + _GAP)
            picture = Image.fromarray(np.ascontiguousarray(crop[..., ::-1])).resize(
                (_CELL, _CELL), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left, top + _CAPTION))
            draw.text((left, top + 2), caption, fill=_INK, font=font)
    return sheet
