"""ONNX: writing a network as a graph of any image size, and running such a file."""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.checkpoint import write_atomically
from csd_plugin.deploy.formats import Description
from csd_plugin.errors import OptionError

OPSET = 17
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1 / 255}


class _InFloat32(nn.Module):
    """A network in half precision that takes and gives float32, so that callers need not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lq: Tensor) -> Tensor:
        return self.network(lq.half()).float()


def save_onnx(
    network: nn.Module,
    description: Description,
    path: Path,
    multiple: int = 1,
    channels: int = 3,
    half: bool = False,
    size: tuple[int, int] | None = None,
) -> float:
    """Write an ONNX file that ONNX Runtime has been seen to run as PyTorch runs the network.

    Input `lq` (B, C, H, W) in 0..1, output `sr` (B, C, scale * H, scale * W), both float32, B, H and W free.

    Args:
        network: the network in evaluation mode on the CPU.
        description: goes into the file's metadata.
        path: target.
        multiple: what H and W must be a multiple of.
        channels: C.
        half: weights and arithmetic in float16.
        size: H and W, fixed, with B = 1, for a network whose graph depends on them; None leaves them free.

    Returns:
        Largest difference that was seen, in 0..1.

    Raises:
        OptionError: onnx or onnxruntime is missing, the network cannot be exported, or the two differ by more than
            1e-4 (with `half` by more than 1/255 from the network in float32).
    """
    onnx, _ = _modules()
    traced = _InFloat32(_copy_in_half(network)) if half else network
    side = 2 * multiple if multiple > 1 else 16
    height, width = size or (side, side)
    axes = {} if size else {0: "batch", 2: "height", 3: "width"}
    file = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                traced,
                (torch.rand(1, channels, height, width),),
                file,  # type: ignore[arg-type]
                dynamo=False,
                input_names=["lq"],
                output_names=["sr"],
                dynamic_axes={"lq": axes, "sr": axes},
                opset_version=OPSET,
            )
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise OptionError(f"{description.network_g['type']} cannot be exported to ONNX: {reason}") from None
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, description.to_strings() | {"size_multiple": str(multiple)})
    data = model.SerializeToString()
    shapes: list[tuple[int, ...]] = [(2, channels, 3 * side, 2 * side), (3, channels, side, 4 * side)]
    if size:
        shapes = [(1, channels, *size)]
    seen = _largest_difference(network, data, shapes)
    allowed = _TOLERANCE[torch.float16 if half else torch.float32]
    if not seen <= allowed:
        advice = "" if size else ", which may be right at one size only: fix it by --size H W"
        raise OptionError(f"ONNX Runtime differs from PyTorch by {seen:.1e}, more than {allowed:.1e}{advice}")
    write_atomically(data, path)
    return seen


def _copy_in_half(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).half()


def _largest_difference(network: nn.Module, data: bytes, shapes: list[tuple[int, ...]]) -> float:
    session = _session(data)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for shape in shapes:
        x = torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected = network(x)
        try:
            (found,) = session.run(None, {"lq": x.numpy()})
        except Exception:  # onnxruntime has no common class of its own for what a graph may run into
            return float("inf")
        difference = torch.from_numpy(found) - expected
        worst = max(worst, float(difference.abs().max()))
    return worst


def load_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], Description, int]:
    """A file of `save_onnx`.

    Returns:
        Function from (B, C, H, W) to (B, C, scale * H, scale * W), description, and what H and W must be a multiple of.

    Raises:
        OptionError: onnxruntime is missing, or the file is none of ours.
    """
    if not path.is_file():
        raise OptionError(f"no such file: {path}")
    session = _session(path.read_bytes(), str(path))
    strings = session.get_modelmeta().custom_metadata_map
    try:
        description = Description.from_strings(strings)
    except (KeyError, ValueError):
        raise OptionError(f"{path} does not say which network it is: it is not by basicsr export") from None

    *_, height, width = session.get_inputs()[0].shape

    def run(x: Tensor) -> Tensor:
        if isinstance(height, int) and x.shape[-2:] != (height, width):
            found = f"{x.shape[-2]}x{x.shape[-1]}"
            raise OptionError(f"{path} takes images of {height}x{width} only, got {found}")
        return torch.from_numpy(session.run(None, {"lq": x.float().cpu().numpy()})[0])

    return run, description, int(strings.get("size_multiple", "1"))


def _session(data: bytes, name: str = "the graph") -> Any:
    _, onnxruntime = _modules(reading=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
        providers = [provider for provider in wanted if provider in onnxruntime.get_available_providers()]
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:
        raise OptionError(f"{name}: no ONNX file ({' '.join(str(error).split())[:120]})") from None


def _modules(reading: bool = False) -> tuple[Any, Any]:
    try:
        import onnxruntime

        if reading:
            return None, onnxruntime
        import onnx
    except ImportError as error:
        raise OptionError(f"{error.name} is not installed: pip install onnx onnxruntime") from None
    return onnx, onnxruntime
