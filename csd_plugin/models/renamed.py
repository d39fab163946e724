"""A data loader under another name, since BasicSR's validation names its results after the data set."""

from collections.abc import Iterator
from typing import Any


class Renamed:
    """A data loader whose data set goes by another name."""

    def __init__(self, dataloader: Any, name: str) -> None:
        self._dataloader = dataloader
        self.dataset = _RenamedDataset(dataloader.dataset, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dataloader)

    def __len__(self) -> int:
        return len(self._dataloader)


class _RenamedDataset:
    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self.opt = {**dataset.opt, "name": name}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)
