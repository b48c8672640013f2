"""The preparation of images: any image of a digit becomes one like those in MNIST."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from served import enlarge

from benchmarks.pictures import DISTORTIONS, distort_digits, measure_accuracy, render_fonts
from lockstep import Classifier, ImageError

MAX_DIFFERENCE = 12  # of 255: mean difference of two images of a seven; other digits differ by at least 18


@pytest.fixture(scope="module")
def classifier(stage_outputs: Path) -> Classifier:
    return Classifier(stage_outputs / "model.onnx")


def draw_seven(
    paper: str, ink: str, mode: str = "RGB", size: tuple[int, int] = (300, 200), width: int = 20
) -> Image.Image:
    image = Image.new(mode, size, paper)
    ImageDraw.Draw(image).line([(120, 50), (200, 50), (150, 160)], fill=ink, width=width, joint="curve")
    return image


def test_ink_is_bright_twenty_pixels_long_and_centred_by_mass(classifier: Classifier) -> None:
    image = classifier.prepare(draw_seven("white", "black"))
    assert (image.shape, image.dtype, image.max()) == ((1, 28, 28), np.uint8, 255)
    rows, columns = np.nonzero(image[0] > 60)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    mass = image[0] / image.sum()
    for axis in (0, 1):
        assert abs((mass.sum(axis=1 - axis) * (np.arange(28) + 0.5)).sum() - 14) <= 0.75


@pytest.mark.parametrize(
    "image",
    [
        draw_seven("black", "white"),
        draw_seven("#e8dfc8", "#27324f"),
        draw_seven("#27324f", "#e8dfc8"),
        draw_seven("white", "black", "L"),
        draw_seven("white", "black").convert("P"),
        draw_seven("white", "black").convert("1"),
        draw_seven("white", "black").convert("CMYK"),
        Image.fromarray(np.asarray(draw_seven("white", "black", "L"), np.uint16) * 257),
        Image.fromarray(np.asarray(draw_seven("white", "black", "L"), np.float32) / 255),
        draw_seven("#00000000", "black", "RGBA"),
        draw_seven("#00000000", "white", "RGBA"),
        draw_seven("#ffffff00", "#5a2080", "RGBA"),
        draw_seven("white", "black").resize((1200, 800)),
        draw_seven("white", "black").crop((105, 35, 215, 175)),
    ],
    ids=["inverted", "paper", "blackboard", "grey", "palette", "bits", "cmyk", "16 bits", "float", "transparent",
         "bright on nothing", "coloured on nothing", "large", "cropped"],
)  # fmt: skip
def test_colours_depth_and_size_change_little(classifier: Classifier, image: Image.Image) -> None:
    one, other = classifier.prepare(draw_seven("white", "black")), classifier.prepare(image)
    assert np.abs(one.astype(int) - other).mean() < MAX_DIFFERENCE


def test_a_rotated_seven_differs(classifier: Classifier) -> None:
    one, other = (
        classifier.prepare(draw_seven("white", "black")),
        classifier.prepare(draw_seven("white", "black").rotate(90, expand=True)),
    )
    assert np.abs(one.astype(int) - other).mean() > 2 * MAX_DIFFERENCE


def test_exif_orientation_is_applied(classifier: Classifier, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_seven("white", "black").rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    one, other = classifier.prepare(draw_seven("white", "black")), classifier.prepare(tmp_path / "turned.jpg")
    assert np.abs(one.astype(int) - other).mean() < MAX_DIFFERENCE


def test_dirt_and_the_papers_edge_are_left_out(classifier: Classifier) -> None:
    image = draw_seven("white", "black")
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 20, 24, 24), fill="black")
    pen.rectangle((0, 0, 8, 200), fill="#443322")
    one, other = classifier.prepare(draw_seven("white", "black")), classifier.prepare(image)
    assert np.abs(one.astype(int) - other).mean() < MAX_DIFFERENCE


def test_a_thin_pen_is_thickened(classifier: Classifier) -> None:
    thin, thick = (classifier.prepare(draw_seven("white", "black", width=width)) for width in (2, 20))
    assert thin.sum() > 0.4 * thick.sum()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_image_that_shows_nothing_is_refused(classifier: Classifier, level: int) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (200, 200))
    for image in (np.full((90, 50), level), np.clip(level + noise, 0, 255).astype(np.uint8)):
        with pytest.raises(ImageError, match="nothing stands out"):
            classifier.prepare(image)


def test_images_of_other_data_sets_are_stretched(stage_outputs: Path, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(stage_outputs / "model.onnx")
    for entry in proto.metadata_props:
        if entry.key == "preparation":
            entry.value = "resize"
    (tmp_path / "resize.onnx").write_bytes(proto.SerializeToString())
    image = Classifier(tmp_path / "resize.onnx", verify=False).prepare(Image.new("RGBA", (90, 50), "#00000000"))
    assert image.min() == 255  # transparency on white
    left = Image.new("L", (200, 50))
    left.paste(200, (0, 0, 100, 50))
    image = Classifier(tmp_path / "resize.onnx", verify=False).prepare(left)
    assert image[0, :, :13].min() == 200
    assert image[0, :, 15:].max() == 0


@pytest.mark.slow
@pytest.mark.ci
def test_distorted_handwriting_is_recognised(handwriting_model: Path) -> None:
    """Digits that the network was not trained on, distorted."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    classifier = Classifier(handwriting_model)
    images = np.stack([np.asarray(enlarge(image).resize((28, 28))) for image in digits.images[1600:]])
    labels = digits.target[1600:]
    accuracies = {kind: measure_accuracy(classifier, distort_digits(kind, images, labels)) for kind in DISTORTIONS}
    assert min(accuracies.values()) > 0.85, accuracies


@pytest.mark.slow
@pytest.mark.ci
def test_most_printed_digits_are_recognised(handwriting_model: Path) -> None:
    assert measure_accuracy(Classifier(handwriting_model), render_fonts((60,))) > 0.6
