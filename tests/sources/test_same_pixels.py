"""The pipeline and the consumer make the same pixels of an image file, whatever its format, mode and size."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_stage_in, write_params
from PIL import Image

from lockstep import Classifier
from lockstep.fitting import FITS
from stages.core.splits import SPLIT_NAMES, read_images, read_names, read_splits_info
from stages.download import download
from stages.export_onnx import export_onnx
from stages.network.models import build_model
from stages.network.weights import WeightsHeader, write_weights
from stages.preprocess import preprocess

SIZE = 24


def picture(mode: str, width: int, height: int) -> Image.Image:
    """Colour that changes from pixel to pixel; transparency and noise where the mode has them."""
    y, x = np.mgrid[0:251, 0:241]
    channels = np.stack([x * 3 + y, y * 5 + x // 2, x * y // 7, 200 - x - y], axis=-1) % 256
    tile = (channels * 0.8 + np.random.default_rng(0).integers(0, 40, channels.shape)).astype(np.uint8)
    rgba = Image.fromarray(np.tile(tile, (height // 251 + 1, width // 241 + 1, 1))[:height, :width])
    return rgba if mode == "RGBA" else rgba.convert("LA").convert(mode) if mode == "LA" else rgba.convert(mode)


def grey(width: int, height: int, dtype: type, white: float) -> Image.Image:
    return Image.fromarray((np.asarray(picture("L", width, height)) / 255 * white).astype(dtype))


def with_palette(width: int, height: int) -> Image.Image:
    return picture("RGB", width, height).quantize(60)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def write(path: Path, image: Image.Image, **options: object) -> None:
    image.save(path, **options)


Save = Callable[[Path], None]


@cache
def pictures() -> dict[str, Save]:
    """What writes each file, by its name."""
    frames = [picture("RGB", 40, 30), picture("RGB", 40, 30).rotate(180)]
    files: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "palette.png": (with_palette(50, 31), {}),
        "palette-transparent.png": (with_palette(50, 31), {"transparency": 3}),
        "palette-alpha.png": (with_palette(50, 31), {"transparency": bytes(range(0, 240, 4))}),
        "palette-large.png": (with_palette(1500, 1100), {"transparency": bytes(range(0, 240, 4))}),
        "grey.png": (picture("L", 33, 57), {}),
        "grey-transparent.png": (picture("L", 33, 57), {"transparency": 77}),
        "LA.png": (picture("LA", 41, 29), {}),
        "LA-large.png": (picture("LA", 1500, 1001), {}),
        "RGB.png": (picture("RGB", 24, 24), {}),
        "RGB-transparent.png": (picture("RGB", 37, 24), {"transparency": (120, 130, 140)}),
        "RGBA.png": (picture("RGBA", 61, 30), {}),
        "RGBA-large.png": (picture("RGBA", 2100, 1500), {"compress_level": 1}),
        "RGBA-long.png": (picture("RGBA", 5000, 40), {"compress_level": 1}),
        "CMYK.jpg": (picture("CMYK", 45, 60), {}),
        "CMYK.tif": (picture("CMYK", 45, 60), {}),
        "bits.png": (picture("1", 60, 44), {}),
        "bits.tiff": (picture("1", 60, 44), {}),
        "bits.pbm": (picture("1", 60, 44), {}),
        "16-bit.png": (grey(50, 40, np.uint16, 65535), {}),
        "16-bit-dark.png": (grey(50, 40, np.uint16, 900), {}),
        "16-bit.tif": (grey(50, 40, np.uint16, 65535), {}),
        "16-bit-large.tif": (grey(1300, 1100, np.uint16, 40000), {}),
        "16-bit.pgm": (grey(50, 40, np.uint16, 3000), {}),
        "32-bit.tif": (grey(50, 40, np.int32, 60000), {}),
        "32-bit-dark.tif": (grey(50, 40, np.int32, 255), {}),
        "float.tif": (grey(50, 40, np.float32, 1), {}),
        "float-dark.tif": (grey(50, 40, np.float32, 0.2), {}),
        "animated.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "animated.png": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "animated.webp": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "transparent.gif": (picture("RGBA", 44, 33), {}),
        "RGB.webp": (picture("RGB", 70, 30), {}),
        "RGBA.webp": (picture("RGBA", 70, 30), {"lossless": True}),
        "RGB.bmp": (picture("RGB", 31, 70), {}),
        "RGB.ppm": (picture("RGB", 31, 70), {}),
        "pages.tif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "photo.jpg": (picture("RGB", 300, 200), {}),
        "photo-larger-than-draft.jpeg": (picture("RGB", 2300, 2100), {}),
        "photo-long.jpg": (picture("RGB", 3000, 1100), {"exif": orientation(8)}),
        "tiny.png": (picture("RGB", 1, 1), {}),
        "tiny.gif": (picture("L", 1, 1), {}),
        "tiny-16-bit.png": (grey(1, 1, np.uint16, 65535), {}),
        "line.png": (picture("RGBA", 400, 1), {}),
    }
    turned = {f"turned-{number}.jpg": (picture("RGB", 66, 32), {"exif": orientation(number)}) for number in range(1, 9)}
    turned |= {"turned.png": (picture("RGBA", 66, 32), {"exif": orientation(6)})}
    turned |= {"turned-16-bit.png": (grey(66, 32, np.uint16, 65535), {"exif": orientation(5)})}
    return {
        name: lambda path, image=image, options=options: write(path, image, **options)  # type: ignore[misc]
        for name, (image, options) in {**files, **turned}.items()
    }


@pytest.fixture(scope="module")
def own_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every picture, in one of two classes in turn."""
    folder = tmp_path_factory.mktemp("pictures") / "own"
    for index, (name, save) in enumerate(pictures().items()):
        path = folder / ("odd" if index % 2 else "even") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
    return folder


@pytest.fixture(scope="module")
def raw(own_images: Path) -> Path:
    params = write_params(own_images.parent / "download.yaml", {"download.dataset": "own"})
    download(params=params, own=own_images, raw=own_images.parent / "raw")
    return own_images.parent / "raw"


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_consumers_pixels_of_every_file_are_those_of_the_pipeline(
    channels: int, fit: str, own_images: Path, raw: Path, tmp_path: Path
) -> None:
    changes = {"preprocess.size": SIZE, "preprocess.channels": channels, "preprocess.fit": fit}
    params = write_params(tmp_path / "params.yaml", changes)
    splits = tmp_path / "splits"
    preprocess(params=params, raw=raw, splits=splits, samples=tmp_path / "samples.png", findings=tmp_path / "data.md")
    classifier = export_untrained(tmp_path, splits)
    assert classifier.metadata.fit == fit
    seen = set()
    for split in SPLIT_NAMES:
        for name, pixels in zip(read_names(splits, split) or [], read_images(splits, split), strict=True):
            seen.add(name.split("/")[1])
            for source in (own_images / name, (own_images / name).read_bytes()):
                np.testing.assert_array_equal(classifier.prepare(source), pixels, err_msg=name)
    assert seen == set(pictures())


def export_untrained(folder: Path, splits: Path) -> Classifier:
    """The ONNX file of an untrained network, as the pipeline exports it: what matters is its metadata."""
    info = read_splits_info(splits)
    network = build_model("reference_b", 8, info.size, info.channels, len(info.classes), info.mean, info.std)
    write_weights(folder / "weights.safetensors", network, WeightsHeader.of("reference_b", 8, info, {}))
    run_stage_in(folder, export_onnx)
    return Classifier(folder / "model.onnx", verify=False)


@pytest.mark.slow
@pytest.mark.ci
def test_the_accuracy_of_evaluate_is_that_of_the_command_on_the_same_files(tmp_path: Path) -> None:
    """Made photographs of three colours of sign, in several formats and proportions, with wrong labels among them."""
    from stages.evaluate import evaluate
    from stages.train import train

    write_signs(tmp_path / "own")
    changes = {
        "download.dataset": "own",
        "preprocess.size": SIZE,
        "preprocess.channels": 3,
        "preprocess.fit": "pad",
        "evaluate.min_accuracy": 0.0,
        "train.epochs": 3,
    }
    params = write_params(tmp_path / "params.yaml", changes)
    download(params=params, own=tmp_path / "own", raw=tmp_path / "raw")
    for stage in (preprocess, train, evaluate, export_onnx):
        run_stage_in(tmp_path, stage)
    files = [str(tmp_path / "own" / name) for name in read_names(tmp_path / "splits", "test") or []]
    command = [sys.executable, "-m", "lockstep", "predict", "--no-verify", "--json"]
    command += ["--model", str(tmp_path / "model.onnx"), str(tmp_path / "own" / "test")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(row["file"] for row in rows) == sorted(files)
    accuracy = np.mean([row["label"] == Path(row["file"]).parent.name for row in rows])
    evaluated = json.loads((tmp_path / "evaluate.json").read_text())["accuracy"]
    assert 0.5 < evaluated < 1
    assert evaluated == pytest.approx(accuracy, abs=1e-6)


def write_signs(own_images: Path) -> None:
    generator = np.random.default_rng(0)
    colors = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
    for split, count in (("train", 60), ("test", 40)):
        for name, color in colors.items():
            (own_images / split / name).mkdir(parents=True)
            for index in range(count):
                width, height = generator.integers(20, 90, 2)
                pixels = generator.integers(0, 160, (height, width, 3), dtype=np.uint8)
                wrong = list(colors.values())[int(generator.integers(0, 3))]
                shown = wrong if split == "test" and index % 4 == 0 else color
                pixels[height // 4 : height // 2, width // 4 : width // 2] = shown
                image, suffix = Image.fromarray(pixels), ("png", "jpg", "gif", "webp", "tif")[index % 5]
                if suffix == "png":
                    image.putalpha(Image.fromarray(generator.integers(100, 256, (height, width), dtype=np.uint8)))
                image.save(own_images / split / name / f"{index}.{suffix}")
