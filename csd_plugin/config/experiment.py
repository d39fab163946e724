"""From what a user names to a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csd_plugin.config.load import YAML_SUFFIXES, read_options
from csd_plugin.errors import OptionError


def training_run(source: Path) -> tuple[dict[str, Any], Path]:
    """The options and the folder of a run of CSDModel.

    Args:
        source: its option file, or its folder in `experiments`, where BasicSR keeps a copy of that.

    Raises:
        OptionError: there is no option file, or it is of something else.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix in YAML_SUFFIXES)
        if not files:
            raise OptionError(f"no option file in {source}: name the one that it was trained with")
        options, experiment = read_options(files[0]), source
    else:
        options = read_options(source)
        experiment = Path("experiments") / str(options.get("name"))
    block = options.get("network_g")
    if not isinstance(block, Mapping) or block.get("type") != "CSSRNet":
        raise OptionError("expected CSSRNet: it takes what CSDModel trained (option network_g:type)")
    for key in ("name", "scale"):
        if key not in options:
            raise OptionError(f"missing option {key}")
    return options, experiment
