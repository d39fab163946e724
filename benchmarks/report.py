"""Writing down what was measured."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path("benchmarks/results")


def machine() -> dict[str, Any]:
    """What the figures were read on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(name: str, title: str, text: str, figures: Mapping[str, Any]) -> None:
    """Print a table and write `<name>.json` and `<name>.md` to the results.

    Args:
        name: file name without suffix.
        title: heading.
        text: Markdown.
        figures: what the JSON file holds beside the machine.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = machine()
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": about, **figures}, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"### {title}\n\n{text}\n", encoding="utf-8")
    sys.stdout.write(f"\n{title}\n\n{text}\n({', '.join(f'{key} {value}' for key, value in about.items())})\n")
    sys.stdout.flush()
