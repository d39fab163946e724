"""The demo's data: photographs that scikit-image carries, public domain or CC0 each as its documentation says."""

import tempfile
from pathlib import Path

import cv2
import skimage.data

from csd_plugin.data.prepare import Settings, prepare

TRAIN_PHOTOGRAPHS = ("astronaut", "brick", "camera", "grass", "gravel", "hubble_deep_field", "retina", "rocket")
VAL_PHOTOGRAPHS = ("chelsea", "coffee")
SCALE = 2


def make_demo_set(output: Path, workers: int, overwrite: bool) -> None:
    """Make x2 training pairs (LMDB) and validation pairs (PNG), split by photograph.

    Args:
        output: folder to write into.
        workers: number of threads.
        overwrite: replace outputs that were made otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        for phase, names in (("train", TRAIN_PHOTOGRAPHS), ("val", VAL_PHOTOGRAPHS)):
            source = Path(folder) / phase
            source.mkdir()
            for name in names:
                _write_photograph(name, source)
            settings = Settings((SCALE,), crop_size=120 if phase == "train" else 0, step=60)
            prepare(source, output, phase, settings, phase == "train", workers, overwrite)


def _write_photograph(name: str, folder: Path) -> None:
    image = getattr(skimage.data, name)()
    conversion = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    cv2.imwrite(str(folder / f"{name}.png"), cv2.cvtColor(image, conversion))
