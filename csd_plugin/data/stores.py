"""Where prepared images go: an LMDB or a folder, complete under its name or still `<name>.partial`."""

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import lmdb

from csd_plugin.errors import OptionError

_STAMP = ".prepare.json"
_FIRST_MAP_SIZE = 64 * 2**20
_PNG_HEADER = 24
COMPRESSION = 1


class Store(Protocol):
    """A set of PNG images by key."""

    def __contains__(self, key: str) -> bool:
        """Whether the image is there."""
        ...

    def put(self, images: Mapping[str, bytes]) -> None:
        """Add images; of one call either all are there afterwards or the last of them is not."""
        ...

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Key, height and width of each image, by key in order."""
        ...

    def close(self) -> None:
        """Write the index and release the files."""
        ...


class LmdbStore:
    """BasicSR's LMDB layout: PNG bytes by key, and `meta_info.txt`. The map grows as it fills.

    Args:
        folder: the LMDB's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        existing = folder / "data.mdb"
        size = existing.stat().st_size if existing.is_file() else 0
        self._env = lmdb.open(str(folder), map_size=max(_FIRST_MAP_SIZE, 2 * size))

    def __contains__(self, key: str) -> bool:
        with self._env.begin() as transaction:
            return transaction.get(key.encode()) is not None

    def put(self, images: Mapping[str, bytes]) -> None:
        """Add images in one transaction."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, png in images.items():
                        transaction.put(key.encode(), png)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Key, height and width of each image, by key in order."""
        with self._env.begin(buffers=True) as transaction:
            for key, png in transaction.cursor():
                yield bytes(key).decode(), _png_size(bytes(png[:_PNG_HEADER]))

    def close(self) -> None:
        """Write `meta_info.txt` and close the environment."""
        lines = [f"{key}.png ({h},{w},3) {COMPRESSION}\n" for key, (h, w) in self.sizes()]
        (self._folder / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
        self._env.sync(True)
        self._env.close()


class FolderStore:
    """PNG files in a folder.

    Args:
        folder: the folder; it is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, key: str) -> bool:
        return (self._folder / f"{key}.png").is_file()

    def put(self, images: Mapping[str, bytes]) -> None:
        """Write the files, the first key last."""
        for key in reversed(list(images)):
            temporary = self._folder / f".{key}.tmp"
            temporary.write_bytes(images[key])
            os.replace(temporary, self._folder / f"{key}.png")

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Key, height and width of each image, by key in order."""
        for path in sorted(self._folder.glob("*.png")):
            with path.open("rb") as file:
                yield path.stem, _png_size(file.read(_PNG_HEADER))

    def close(self) -> None:
        """Remove what an interrupted write left."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink()


class Target:
    """A store under construction: work goes to `<path>.partial`, which takes the name `path` when it is complete.

    Args:
        path: final folder; one that ends with `.lmdb` becomes an LMDB.
        stamp: what the content depends on, kept beside it.
        overwrite: replace a finished folder that was made otherwise.

    Raises:
        OptionError: `path` exists, was made otherwise, and `overwrite` is not set.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any], overwrite: bool) -> None:
        self.path = path
        self._stamp = json.dumps(stamp, sort_keys=True)
        self.complete = path.is_dir() and self._stamp_in(path) == self._stamp
        if path.exists() and not self.complete and not overwrite:
            raise OptionError(f"{path} exists and was made otherwise: name another output or add --overwrite")
        self._partial = path.with_name(path.name + ".partial")
        self.store: Store | None = None

    def open(self) -> Store:
        """Begin, or go on where an interrupted run with the same stamp stopped."""
        if self._partial.exists() and self._stamp_in(self._partial) != self._stamp:
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True, exist_ok=True)
        (self._partial / _STAMP).write_text(self._stamp, encoding="utf-8")
        self.store = LmdbStore(self._partial) if self.path.suffix == ".lmdb" else FolderStore(self._partial)
        return self.store

    def publish(self) -> None:
        """Give the finished folder its name."""
        if self.store is not None:
            self.store.close()
        if self.path.exists():
            shutil.rmtree(self.path)
        os.replace(self._partial, self.path)
        self.complete = True

    @staticmethod
    def _stamp_in(folder: Path) -> str | None:
        file = folder / _STAMP
        return file.read_text(encoding="utf-8") if file.is_file() else None


def _png_size(header: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", header[16:24])
    return height, width
