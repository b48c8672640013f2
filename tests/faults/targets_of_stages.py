"""Fuzz targets: the files that the stages read, and the folder of a person's images."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from random import Random

import numpy as np
from conftest import idx_bytes, synthetic_digits
from fuzz_target import Target
from mutations import mutate_bytes, mutate_json, serialize
from valid_inputs import NPY_TOKENS, image_files, npy_bytes


def idx(folder: Path) -> Target:
    """Gzipped IDX files of images and labels, as preprocess reads them."""
    from stages.core.errors import StageError
    from stages.sources.published import PUBLISHED as DATASETS

    images, labels = synthetic_digits(20, 1)
    names = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
    valid = idx_bytes(images), idx_bytes(labels)

    def make(generator: Random) -> tuple[bytes, bytes]:
        chosen, files = generator.randrange(2), list(valid)
        if generator.random() < 0.75:
            data = mutate_bytes(generator, [gzip.decompress(files[chosen])])
            files[chosen] = gzip.compress(data, 1, mtime=0)
        else:
            files[chosen] = mutate_bytes(generator, [files[chosen]])
        return files[0], files[1]

    def use(files: tuple[bytes, bytes]) -> None:
        for name, data in zip(names, files, strict=True):
            (folder / name).write_bytes(data)
        part = DATASETS["mnist"].read_part(folder, "train")
        count = sum(len(block) for block in part.images(1))
        assert count == len(part.labels)

    return Target([valid], make, use, (StageError,))


def raw_folder(folder: Path) -> Target:
    """source.json and the arrays of the embedded digits, through the split of preprocess."""
    from stages.core.errors import StageError
    from stages.preprocess import Preprocess, scaled_blocks, split_images
    from stages.sources.catalog import read_raw

    section = Preprocess(size=28, channels=1, fit="stretch", validation_fraction=0.1, test_fraction=0.2, seed=0)
    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8) % 17, np.arange(40, dtype=np.uint8) % 4
    source = {"dataset": "digits", "origin": "made", "preparation": "mnist", "classes": list("0123"), "files": {}}
    arrays = [npy_bytes(images), npy_bytes(labels)]
    valid = (json.dumps(source).encode(), *arrays)

    def make(generator: Random) -> tuple[bytes, ...]:
        files = list(valid)
        match generator.randrange(3):
            case 0:
                files[0] = serialize(generator, mutate_json(generator, source, ["own", "mnist", "kmnist"]))
            case 1:
                files[0] = mutate_bytes(generator, valid[:1])
            case _:
                chosen = generator.choice((1, 2))
                files[chosen] = mutate_bytes(generator, arrays, NPY_TOKENS)
        return tuple(files)

    def use(files: tuple[bytes, ...]) -> None:
        for name, data in zip(("source.json", "images.npy", "labels.npy"), files, strict=True):
            (folder / name).write_bytes(data)
        content, data_set = read_raw(folder)
        for part, _ in split_images(data_set, content["classes"], section):
            sum(len(block) for block in scaled_blocks(part, section))

    return Target([valid], make, use, (StageError,))


def splits(folder: Path) -> Target:
    """The folder of splits, as all later stages read it."""
    from stages.core.errors import StageError
    from stages.core.splits import SPLIT_NAMES, name_images, read_images, read_labels, read_splits_info

    images, labels = synthetic_digits(10, 1)
    info = {
        "dataset": "digits", "origin": "made", "preparation": "mnist", "classes": list("0123456789"),
        "channels": 1, "size": 28, "fit": "stretch", "counts": dict.fromkeys(SPLIT_NAMES, 10),
        "counts_by_class": dict.fromkeys(SPLIT_NAMES, [1] * 10), "mean": [0.1], "std": [0.3],
    }  # fmt: skip
    files = {"about.json": json.dumps(info).encode()}
    for name in SPLIT_NAMES:
        files[f"{name}-images.npy"] = npy_bytes(images[:, None])
        files[f"{name}-labels.npy"] = npy_bytes(labels.astype(np.uint8))
        files[f"{name}-names.txt"] = "".join(f"{index}.png\n" for index in range(10)).encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)

    def make(generator: Random) -> tuple[str, bytes]:
        name = generator.choice(list(files))
        if name == "about.json" and generator.random() < 0.7:
            return name, serialize(generator, mutate_json(generator, info))
        return name, mutate_bytes(generator, [files[name], *list(files.values())[1:3]], NPY_TOKENS)

    def use(damaged: tuple[str, bytes]) -> None:
        name, data = damaged
        (folder / name).unlink()  # a memory map of the one before still holds its file
        (folder / name).write_bytes(data)
        try:
            read_splits_info(folder)
            for split in SPLIT_NAMES:
                count = len(read_images(folder, split))
                assert len(read_labels(folder, split)) == len(name_images(folder, split, count)) == count
        finally:
            (folder / name).unlink()
            (folder / name).write_bytes(files[name])

    return Target(list(files.items()), make, use, (StageError,))


def weights(folder: Path) -> Target:
    """The weights file, as evaluate, export_onnx and validate_parity read it."""
    from stages.core.errors import StageError
    from stages.network.models import build_model
    from stages.network.weights import WeightsHeader, read_weights, write_weights

    path = folder / "weights.safetensors"
    network = build_model("reference_e", 4, 28, 1, 10, [0.1], [0.3], 1)
    header = WeightsHeader(
        architecture="reference_e", width=4, size=28, channels=1, classes=list("0123456789"), dataset="digits",
        origin="made", preparation="mnist", params={"epochs": 1},
    )  # fmt: skip
    write_weights(path, network, header)
    valid = path.read_bytes()
    (length,) = struct.unpack("<Q", valid[:8])
    content, body = json.loads(valid[8 : 8 + length]), valid[8 + length :]

    def make(generator: Random) -> bytes:
        if generator.random() < 0.3:
            return mutate_bytes(generator, [valid])
        own = json.loads(content["__metadata__"]["lockstep"])
        if generator.random() < 0.7:
            metadata = {
                "lockstep": serialize(generator, mutate_json(generator, own, [1 << 20])).decode(errors="replace")
            }
            text = json.dumps({**content, "__metadata__": metadata}).encode()
        else:
            text = serialize(generator, mutate_json(generator, content))
        return struct.pack("<Q", len(text)) + text + body

    def use(data: bytes) -> None:
        path.unlink()
        path.write_bytes(data)
        read_weights(path)

    return Target([valid], make, use, (StageError,))


def checkpoint(folder: Path) -> Target:
    """A checkpoint that was damaged on the disk: either it is refused, or it is the state that was saved."""
    import torch

    from stages.core.errors import StageError
    from stages.training.checkpoint import Checkpoint

    state = {"network": {"weight": torch.arange(64.0)}, "trace": [[1, "ab"]], "steps_done": 3, "best": (-1.0, None)}
    saved = Checkpoint(folder, "training", 1.0)
    saved.save(state)
    valid = saved.path.read_bytes()

    def use(data: bytes) -> None:
        saved.path.write_bytes(data)
        loaded = saved.load()
        if loaded is not None:
            assert torch.equal(loaded["network"]["weight"], state["network"]["weight"])
            assert {**loaded, "network": 0} == {**state, "network": 0}

    return Target([valid], lambda generator: mutate_bytes(generator, [valid]), use, (StageError,))


def image_folder(folder: Path) -> Target:
    """A person's images: folders and files of any name and content, through check, fetch and read."""
    from stages.core.errors import StageError
    from stages.sources.image_folder import ImageFolder

    valid = image_files()[:6]
    names = ["cat", "dog", "train", "test", ".hidden", "a\nb", "\udcff", "$(touch marker)", "é", "-rf", " ", "1", "10"]
    files = ["1.png", "2.PNG", "3.jpg", "a\nb.png", "notes.txt", ".DS_Store", "\udcff.png", "$(touch marker).png", "x"]
    good = {f"{label}/{index}.png": valid[0] for label in ("cat", "dog") for index in range(3)}

    def make(generator: Random) -> dict[str, bytes]:
        tree = dict(good) if generator.random() < 0.6 else {}
        for _ in range(generator.randrange(4)):
            depth = generator.choice((0, 1, 1, 1, 2))
            path = "/".join([*generator.choices(names, k=depth), generator.choice(files)])
            tree[path] = mutate_bytes(generator, valid)
        return tree

    def use(tree: dict[str, bytes]) -> None:
        own, raw = folder / "own", folder / "raw"
        for path in (own, raw):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        for name, data in tree.items():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            if not (own / name).is_dir():
                (own / name).write_bytes(data)
        data_set = ImageFolder()
        data_set.check(raw, own)
        fetched = data_set.fetch(raw, raw, own)
        source = {"files": dict.fromkeys(fetched.files, ""), "classes": fetched.classes}
        read = data_set.read(raw, source)
        for part in filter(None, (read.train, read.test)):
            assert sum(len(block) for block in part.images(3)) == len(part.labels)

    return Target([good], make, use, (StageError,))
