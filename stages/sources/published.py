"""MNIST, Fashion-MNIST and KMNIST: gzipped IDX files that mirrors publish, as torchvision.datasets lists them.

The table is written here because importing torchvision takes seconds. A test compares it with torchvision's.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.dataset import REFETCH, FetchedFiles, LabelledImages, RawData
from stages.sources.mirrors import PublishedFile, check_available, download_files


@dataclass(frozen=True)
class IdxDataset:
    origin: str
    preparation: str
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    md5: tuple[str, ...]  # of FILES, in this order

    FILES: ClassVar = tuple(
        f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )

    def files(self) -> list[PublishedFile]:
        return [PublishedFile(name, md5) for name, md5 in zip(self.FILES, self.md5, strict=True)]

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        for file in self.files():
            if file.is_intact(existing) and not file.is_intact(folder):
                shutil.copyfile(existing / file.name, folder / file.name)
        download_files(self.files(), self.mirrors, folder)
        return FetchedFiles(self.origin, list(self.classes), list(self.FILES))

    def check(self, existing: Path, own_images: Path) -> None:
        if missing := [file for file in self.files() if not file.is_intact(existing)]:
            check_available(missing[-1], self.mirrors)  # the last file is small

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        return RawData(self.read_part(folder, "train"), self.read_part(folder, "t10k"))

    def read_part(self, folder: Path, prefix: str) -> LabelledImages:
        images, labels = (folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        counts = idx.read_shape(images, 3)[0], idx.read_shape(labels, 1)[0]
        if counts[0] != counts[1]:
            raise StageError(f"{images} holds {counts[0]} images, but {labels} {counts[1]} labels; {REFETCH}")
        return LabelledImages(
            labels=np.concatenate([np.empty(0, np.uint8), *idx.read_blocks(labels, 1)]),
            images=lambda _: idx.read_blocks(images, 3),
            locate=lambda index: f"{images}, image {index}",
        )


PUBLISHED = {
    "mnist": IdxDataset(
        origin="http://yann.lecun.com/exdb/mnist/",
        preparation="mnist",
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": IdxDataset(
        origin="https://github.com/zalandoresearch/fashion-mnist",
        preparation="resize",
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "kmnist": IdxDataset(
        origin="http://codh.rois.ac.jp/kmnist/",
        preparation="resize",
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        md5=(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
}
