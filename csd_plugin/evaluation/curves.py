"""The curves of a run, from what BasicSR writes for tensorboard."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = list[tuple[int, float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Points (iteration, value) of each curve by its tag, such as `losses/l_contrast` or `metrics/Set5/psnr`.

    Of an iteration that a resumed run went through twice, the later value counts.

    Args:
        folder: `tb_logger/<name>`; without it there are no curves.
    """
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in sorted(events.Tags()["scalars"]):
        points = {event.step: float(event.value) for event in events.Scalars(tag)}
        curves[tag] = sorted(points.items())
    return curves
