"""Looks at a person's images without decoding them: how many of each class, sizes and colour; and advises params."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from PIL import Image

GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and all that begin with I;
PHOTOS, SMALL_SIDE = "photos", 40  # a set of experiments.yaml; pixels: grey images up to it are like MNIST's
FEW_IMAGES, FEW_OF_CLASS, UNEQUAL = 100, 10, 4.0  # of most classes, of one class; the largest to the smallest class
OBLONG, SOME_OBLONG = 1.25, 0.25  # longer to shorter side; fraction of the images
MAX_NAMED = 3  # classes or files that a line names; the others are counted
COMMAND = "make run DATASET=own"


@dataclass
class Survey:
    """What the headers of the files say."""

    classes: dict[str, int]  # the number of images, in the order of the classes
    splits: dict[str, int] = field(default_factory=dict)  # of train and test, if the person made them
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # shorter and longer side, in pixels
    grey: int = 0
    colour: int = 0
    unreadable: list[Path] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.classes.values())

    @property
    def shorter_sides(self) -> list[int]:
        return sorted(size[0] for size in self.sizes.elements())


def survey_images(files: Iterable[Path], classes: list[str], split_names: list[str]) -> Survey:
    """Read the header of each file, which lies in the folder of its class."""
    survey = Survey(dict.fromkeys(classes, 0), dict.fromkeys(split_names, 0))
    for file in files:
        survey.classes[file.parent.name] += 1
        if split_names:
            survey.splits[file.parent.parent.name] += 1
        try:
            with Image.open(file) as image:
                survey.sizes[min(image.size), max(image.size)] += 1
                is_grey_image = is_grey(image)
        except Exception:  # Pillow's readers raise errors of many types for broken files
            survey.unreadable.append(file)
            continue
        survey.grey += is_grey_image
        survey.colour += not is_grey_image
    return survey


def is_grey(image: Image.Image) -> bool:
    """As far as the header says: a grey picture that was saved in colour counts as colour."""
    if image.mode in ("P", "PA"):
        palette = image.getpalette() or []
        return all(palette[index] == palette[index + 1] == palette[index + 2] for index in range(0, len(palette), 3))
    return image.mode in GREY_MODES or image.mode.startswith("I;")


def describe(survey: Survey, folder: Path) -> str:
    """A table, and in a paragraph of its own the advice."""
    counts = survey.classes
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    splits = ", ".join(f"{count:,} in {name}" for name, count in survey.splits.items())
    spread = f"{counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most}), median {median_low(counts.values()):,}"
    rows = {
        "images": f"{survey.total:,} in {len(counts)} classes" + (f": {splits}" if splits else ""),
        "by class": f"{counts[most]:,} of each" if counts[fewest] == counts[most] else spread,
        "sizes": describe_sizes(survey),
        "colour": describe_colour(survey),
    }
    if survey.unreadable:
        rows["unreadable"] = f"{len(survey.unreadable):,}: {name_some([str(file) for file in survey.unreadable])}"
    table = "\n".join(f"  {name:<10} {text}" for name, text in rows.items())
    advice = "\n".join(f"  - {line}" for line in advise(survey))
    return f"{folder}, by the headers of its files:\n{table}\n\nAdvice; nothing is changed unless you say so:\n{advice}"


def describe_sizes(survey: Survey) -> str:
    if len(survey.sizes) == 1:
        ((shorter, longer),) = survey.sizes
        return f"all {longer}x{shorter}"
    if not survey.sizes:
        return "unknown"
    sides, share = survey.shorter_sides, oblong_share(survey)
    text = f"shorter side {sides[0]} to {sides[-1]} pixels, median {median_low(sides)}"
    return text + (f"; {share:.0%} are oblong" if share else "")


def oblong_share(survey: Survey) -> float:
    """The fraction of images whose one side is clearly longer than the other."""
    oblong = sum(count for (shorter, longer), count in survey.sizes.items() if longer > OBLONG * shorter)
    return oblong / survey.sizes.total()


def describe_colour(survey: Survey) -> str:
    if not survey.grey or not survey.colour:
        return f"all {'grey' if survey.grey else 'colour'}" if survey.sizes else "unknown"
    return f"{survey.colour:,} colour, {survey.grey:,} grey"


def advise(survey: Survey) -> Iterator[str]:
    """Lines that each say what, why, and how to take it."""
    if survey.unreadable:
        yield "replace or remove the unreadable files: preprocess stops at the first of them"
    if survey.sizes:
        yield from advise_on_recipe(survey)
        yield from advise_on_counts(survey)


def advise_on_recipe(survey: Survey) -> Iterator[str]:
    sides = survey.shorter_sides
    side, is_grey_set = median_low(sides), survey.grey > 9 * survey.colour
    if is_grey_set and side <= SMALL_SIDE:
        yield (
            f"small grey images, like MNIST's: the params that are committed (28x28, grey) are for these; "
            f"`{COMMAND} EXPERIMENT={PHOTOS}`, a set of experiments.yaml, only if they are not enough"
        )
        return
    kind = "grey images with more detail than 28x28 shows" if is_grey_set else "colour images"
    yield f"{kind}: the set `{PHOTOS}` of experiments.yaml is for these: `{COMMAND} EXPERIMENT={PHOTOS}`"
    if is_grey_set:
        yield "all are grey: after it, `python -m flows.pipeline -S preprocess.channels=1` saves time and loses nothing"
    if side <= SMALL_SIDE:
        yield f"they are small: after it, `python -m flows.pipeline -S preprocess.size={side}` saves time"
    if oblong_share(survey) > SOME_OBLONG:
        yield "many are oblong: preprocess.fit says whether they are stretched, cropped or padded to a square"


def advise_on_counts(survey: Survey) -> Iterator[str]:
    counts = sorted(survey.classes.values())
    if scarce := [f"{name} ({count})" for name, count in survey.classes.items() if count < FEW_OF_CLASS]:
        yield (
            f"add images to {name_some(scarce)}: of fewer than {FEW_OF_CLASS} one or two are left to test, which says "
            f"nothing of the class"
        )
    elif median_low(counts) < FEW_IMAGES:
        yield (
            f"fewer than {FEW_IMAGES} images in most classes: the accuracy will be uncertain by several percent; read "
            f"its interval, and add images if you can"
        )
    if counts[-1] > UNEQUAL * max(counts[0], 1):
        yield "unequal classes: read the macro F1, which counts each class alike, beside the accuracy"


def name_some(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest
