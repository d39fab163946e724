"""The student at work beside the teacher: `python -m benchmarks.student [HEIGHT WIDTH] [ENGINE ...]`."""

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import report, table
from csd_plugin import CSSRNet
from csd_plugin.evaluation.complexity import count_macs
from csd_plugin.evaluation.timing import measure
from csd_plugin.slicing.widths import build_backbone

_ENDS = {"num_in_ch": 3, "num_out_ch": 3, "upscale": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR 256/32": {"type": "EDSR", **_ENDS, "num_feat": 256, "num_block": 32, "res_scale": 0.1},
    "RCAN 64/10x20": {"type": "RCAN", **_ENDS, "num_feat": 64, "num_group": 10, "num_block": 20},
}
WIDTHS = (0.25, 0.5, 0.75)
_MANY_PIXELS = 180 * 320  # from here on a forward pass takes so long that two rounds must do


def _on_device(network: nn.Module, x: Tensor, channels_last: bool) -> Callable[[], object]:
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    return torch.no_grad()(partial(network, x))


def _compiled(network: nn.Module, x: Tensor) -> Callable[[], object]:
    return _on_device(torch.compile(network), x, channels_last=True)


def _bf16(network: nn.Module, x: Tensor) -> Callable[[], object]:
    return _on_device(network.bfloat16(), x.bfloat16(), channels_last=True)


def _onnx(network: nn.Module, x: Tensor) -> Callable[[], object]:
    import onnxruntime

    file = io.BytesIO()
    small, axes = x[..., :16, :16], {"lq": {2: "height", 3: "width"}}
    torch.onnx.export(network, (small,), file, dynamo=False, input_names=["lq"], dynamic_axes=axes, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"lq": x.numpy()})


def engines(names: list[str]) -> dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]]:
    """What can run a network on this machine: on a CPU eager, channels_last, ONNX Runtime; on a GPU bf16, compiled."""
    found: dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = {
        "eager": lambda network, x: _on_device(network, x, channels_last=False),
        "channels_last": lambda network, x: _on_device(network, x, channels_last=True),
    }
    if torch.cuda.is_available():
        found |= {
            "bf16": _bf16,
            "compiled": _compiled,
            "bf16 compiled": lambda n, x: _compiled(n.bfloat16(), x.bfloat16()),
        }
    else:
        found |= {"ONNX Runtime": _onnx, "compiled": _compiled}
    return {name: engine for name, engine in found.items() if name in names} if names else found


def main() -> None:
    """Measure speed-ups over the teacher, and the exported student against the stock narrow network."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    height, width = numbers or (180, 320)
    chosen = [word for word in sys.argv[1:] if not word.isdigit()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.rand(1, 3, height, width, device=device)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    same: list[str] = []
    for name, backbone in NETWORKS.items():
        net = CSSRNet(backbone, WIDTHS).to(device).eval()
        macs = {w: count_macs(net.export(w), (3, height, width)) for w in (1.0, *WIDTHS)}
        for engine, prepare in engines(chosen).items():
            runs = {f"{w:g}": prepare(net.export(w), x) for w in (1.0, *WIDTHS)}
            times = measure(runs, rounds=3 if height * width < _MANY_PIXELS else 2, warmup=1)
            speedup = {w: times["1"].median / times[f"{w:g}"].median for w in WIDTHS}
            figures[f"{name}, {engine}"] = speedup
            rows.append([name, engine, *(f"{speedup[w]:.2f}" for w in WIDTHS)])
        rows.append([name, "*by MACs*", *(f"{macs[1.0] / macs[w]:.2f}" for w in WIDTHS)])
        same.append(f"{name}: {_export_over_stock(net, x):.3f}")
    text = table(["network", "engine", *(f"{w:g}x" for w in WIDTHS)], rows)
    text += (
        f"\n\nSpeed-up over the teacher for one 3x{height}x{width} image. Time of the exported student at 0.25 over "
        f"that of the stock narrow network: {', '.join(same)}."
    )
    report(
        "student", "The student at work", text, {"size": [height, width], "speedup": figures, "export_over_stock": same}
    )


def _export_over_stock(net: CSSRNet, x: Tensor) -> float:
    """Time of the exported student over that of a stock network built from its options."""
    stock = build_backbone(net.stock_options(WIDTHS[0])).to(x.device).eval()
    runs = {"export": _on_device(net.export(WIDTHS[0]), x, False), "stock": _on_device(stock, x, False)}
    times = measure(runs, rounds=15, warmup=2)
    return times["export"].median / times["stock"].median


if __name__ == "__main__":
    main()
