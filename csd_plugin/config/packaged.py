"""`basicsr options`: the option files that come with the package, for those who have no checkout."""

import argparse
import sys
from pathlib import Path

from csd_plugin.config.load import YAML_SUFFIXES
from csd_plugin.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr options`."""
    parser.epilog = "example: basicsr options"
    parser.add_argument("-o", "--output", type=Path, default=Path("options"), help="folder (default: options)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> None:
    """Copy the files; those that are there already stay as they are.

    Raises:
        OptionError: they cannot be written, or the package came without them.
    """
    written = kept = 0
    for name, content in packaged_options().items():
        target = args.output / name
        if target.exists() and not args.overwrite:
            kept += 1
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError as error:
            raise OptionError(f"{target}: {error.strerror} (option -o)") from None
        written += 1
    sys.stdout.write(f"{written} option files written to {args.output}, {kept} that were there are kept\n")


def packaged_options() -> dict[str, bytes]:
    """Content of each option file by its path in `options`.

    Raises:
        OptionError: the package came without them.
    """
    folder = _folder()
    paths = sorted(path for path in folder.rglob("*") if path.suffix in YAML_SUFFIXES)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _folder() -> Path:
    """`csd_plugin/options` of an installed package, or `options` of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "options", package.parent / "options"):
        if folder.is_dir():
            return folder
    raise OptionError("this installation of csd_plugin has no option files")
