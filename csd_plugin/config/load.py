"""Reading option files: YAML with `_base_`, overrides from the command line, and BasicSR's own parser behind them.

`parse_options` takes the place of BasicSR's. It resolves `_base_`, numbers such as `1e-4` and `--force_yml` into one
plain option file, hands that to BasicSR's parser and checks the outcome before anything is written.
"""

import argparse
import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from csd_plugin.config.preflight import check_launcher, check_options, check_run
from csd_plugin.errors import OptionError

YAML_SUFFIXES = (".yml", ".yaml")
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
Parser = Callable[..., tuple[dict[str, Any], argparse.Namespace]]


def read_options(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read an option file.

    Args:
        path: YAML file; its key `_base_` may name other files that it builds on, relative to itself.
        overrides: entries `a:b:c=value` with a YAML value; keys that do not exist are added.

    Returns:
        The merged options.

    Raises:
        OptionError: a file is missing, is no safe YAML mapping, or an override cannot be read.
    """
    _check_files(Path(path))
    try:
        options = Config.fromfile(str(path))
    except (KeyError, TypeError) as error:  # a block of the file over a value of its base, which mmengine refuses
        raise OptionError(f"{path}: {' '.join(str(error).split())}") from None
    options.merge_from_dict(dict(_override(entry) for entry in overrides))
    return _plain(options.to_dict())


def _check_files(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Read the file and every file that it builds on with the safe loader, before anything else reads them."""
    if path in above:
        raise OptionError(f"{path}: _base_ leads back to itself")
    bases = _read_yaml(path).get("_base_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        _check_files(path.parent / base, (*above, path))


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix not in YAML_SUFFIXES:
        raise OptionError(f"expected an option file that ends with .yml, got {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"cannot read option file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OptionError(f"{path} is no text file") from None
    except yaml.YAMLError as error:
        raise OptionError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise OptionError(f"{path}: expected a YAML mapping, got {type(content).__name__}")
    return content


def _override(entry: str) -> tuple[str, Any]:
    key, equals, value = entry.partition("=")
    if not equals or not key.strip():
        raise OptionError(f"expected key:key=value, got {entry!r} (option --force_yml)")
    try:
        parsed = None if value.strip().lower() == "none" else yaml.safe_load(value)
    except yaml.YAMLError:
        raise OptionError(f"cannot read the value of {entry!r} (option --force_yml)") from None
    return ".".join(part.strip() for part in key.split(":")), parsed


def _plain(value: Any) -> Any:
    """Plain containers, and floats where YAML 1.1 leaves `1e-4` a string."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value


def arguments() -> argparse.ArgumentParser:
    """BasicSR's flags, all of them, with both spellings of `--local-rank`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--debug", action="store_true", help="BasicSR's debug mode: frequent logging and validation")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options: train:ema_decay=0.999"
    )
    return parser


def parse_options_with(basicsr_parser: Parser) -> Parser:
    """BasicSR's `parse_options` with this module's reading before it and the checks of `preflight` after it."""

    def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], argparse.Namespace]:
        given = argparse.ArgumentParser(parents=[arguments()]).parse_args()
        options = read_options(given.opt, given.force_yml)
        check_launcher(given.launcher)
        check_options(options, is_train)
        with _command_line(given, _written(options, given.opt)):
            opt, args = basicsr_parser(root_path, is_train=is_train)
        check_run(opt)
        return opt, args

    parse_options.basicsr_parser = basicsr_parser  # type: ignore[attr-defined]
    return parse_options


def _written(options: Mapping[str, Any], source: str) -> str:
    """A plain file with the options: the user's own where it says the same, else a temporary one of the same name."""
    if _read_yaml(Path(source)) == options:
        return source
    folder = tempfile.mkdtemp(prefix="csd_plugin_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / Path(source).name
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
    path.write_text(f"# Merged from {source}\n{text}", encoding="utf-8")
    return str(path)


@contextmanager
def _command_line(given: argparse.Namespace, option_file: str) -> Iterator[None]:
    """What BasicSR's parser reads from `sys.argv`."""
    original = sys.argv
    sys.argv = [original[0], "-opt", option_file, "--launcher", given.launcher, "--local_rank", str(given.local_rank)]
    sys.argv += [flag for flag, on in (("--auto_resume", given.auto_resume), ("--debug", given.debug)) if on]
    try:
        yield
    finally:
        sys.argv = original
