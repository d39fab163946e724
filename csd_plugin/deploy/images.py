"""Image files as networks take them, with what a photograph may bring: alpha, grey, 16 bits, an EXIF orientation."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from csd_plugin.checkpoint import write_atomically
from csd_plugin.data.bicubic import resize
from csd_plugin.errors import OptionError

_ORIENTATION = 274  # EXIF tag
_UPRIGHT = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
MOST_PIXELS = 2**28  # of a file that is read; beyond it a header is more likely a bomb than a photograph


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    Attributes:
        colour: (1, 3, H, W) in 0..1, RGB; of a grey file three equal channels.
        alpha: (H, W) in 0..1, or None.
        grey: whether the file had one channel of colour.
        depth: largest value of the file's type, 255 or 65535.
    """

    colour: Tensor
    alpha: np.ndarray | None
    grey: bool
    depth: int


def read_picture(path: Path) -> Picture:
    """Read a file of 8 or 16 bits, upright as its EXIF orientation says.

    Raises:
        OptionError: the file is no image, too large, or of another type.
    """
    try:
        with Image.open(path) as header:
            pixels, orientation = header.width * header.height, header.getexif().get(_ORIENTATION, 1)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise OptionError(f"{path}: no image that can be read ({' '.join(str(error).split())[:100]})") from None
    if pixels > MOST_PIXELS:
        raise OptionError(f"{path}: {pixels:,} pixels are more than {MOST_PIXELS:,}")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        found = "damaged or of an unknown format" if image is None else f"of type {image.dtype}"
        raise OptionError(f"{path}: expected an image of 8 or 16 bits, it is {found}")
    image = _UPRIGHT.get(orientation, lambda same: same)(image)
    depth = int(np.iinfo(image.dtype).max)
    values = image.astype(np.float32) / depth
    if values.ndim == 2:
        values = values[..., None]
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    grey = channels <= 2
    colour = np.repeat(values[..., :1], 3, axis=2) if grey else values[..., 2::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1)))[None]
    return Picture(tensor, alpha, grey, depth)


def write_picture(path: Path, colour: Tensor, source: Picture) -> None:
    """Write an enlarged picture with the source's kind of colour, alpha and bits, atomically.

    Args:
        path: its suffix decides on the format.
        colour: (1, 3, scale * H, scale * W) in 0..1.
        source: what it was made from; its alpha is enlarged by bicubic interpolation.

    Raises:
        OptionError: the format cannot hold it, or the file cannot be written.
    """
    image = colour[0].clamp(0, 1).numpy().transpose(1, 2, 0)[..., ::-1]
    if source.grey:
        image = image.mean(2, keepdims=True)
    if source.alpha is not None:
        scale = image.shape[0] // source.alpha.shape[0]
        alpha = resize(np.repeat(source.alpha[..., None], 3, axis=2), scale)[..., :1].clip(0, 1)
        image = np.concatenate([np.repeat(image, 3, axis=2) if source.grey else image, alpha], axis=2)
    kind = np.uint8 if source.depth == 255 else np.uint16
    try:
        written, data = cv2.imencode(path.suffix, np.ascontiguousarray((image * source.depth).round().astype(kind)))
    except cv2.error:
        written = False
    if not written:
        raise OptionError(f"{path}: {path.suffix or 'a name without suffix'} is no format that this picture fits")
    try:
        write_atomically(data.tobytes(), path)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from None
