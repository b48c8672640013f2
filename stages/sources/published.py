"""MNIST and its siblings: torchvision knows their file names, checksums and mirrors; the files are gzipped IDX."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import StageError
from stages.sources import idx, mirrors
from stages.sources.dataset import REFETCH, FetchedFiles, LabelledImages, RawData, with_channels


class IdxDataset:
    def __init__(self, name: str, origin: str, preparation: str) -> None:
        self.name, self.origin, self.preparation = name, origin, preparation

    def torchvision(self) -> Any:
        import torchvision.datasets  # not at the top: it imports torch, and preprocess reads without it

        return getattr(torchvision.datasets, self.name)

    def files(self) -> list[mirrors.PublishedFile]:
        return [mirrors.PublishedFile(name, md5) for name, md5 in self.torchvision().resources]

    def fetch(self, folder: Path, have: Path, own: Path) -> FetchedFiles:
        for file in self.files():
            if file.intact(have) and not file.intact(folder):
                shutil.copyfile(have / file.name, folder / file.name)
        mirrors.download_files(self.files(), self.torchvision().mirrors, folder)
        classes = [name.split(" - ")[0] for name in self.torchvision().classes]  # "0 - zero" is the digit 0
        return FetchedFiles(self.origin, classes, [file.name for file in self.files()])

    def check(self, have: Path) -> None:
        missing = [file for file in self.files() if not file.intact(have)]
        if missing:
            mirrors.check_available(missing[-1], self.torchvision().mirrors)  # the last file is small

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        return RawData(self.part(folder, "train"), self.part(folder, "t10k"))

    def part(self, folder: Path, prefix: str) -> LabelledImages:
        images, labels = (folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        counts = idx.shape(images, 3)[0], idx.shape(labels, 1)[0]
        if counts[0] != counts[1]:
            raise StageError(f"{images} holds {counts[0]} images, but {labels} {counts[1]} labels; {REFETCH}")
        return LabelledImages(
            labels=np.concatenate([np.empty(0, np.uint8), *idx.blocks(labels, 1)]),
            images=lambda channels: (with_channels(block, channels) for block in idx.blocks(images, 3)),
            name=lambda index: f"{images}, image {index}",
            label_name=lambda index: f"{labels}, label {index}",
        )
