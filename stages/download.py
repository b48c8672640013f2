"""Fetch the raw files of a data set, as published, and check them."""

from pathlib import Path

from stages.common import datasets
from stages.common.command import run, say
from stages.common.params import Section, read_section


class Download(Section):
    dataset: datasets.Name


def download(*, params: Path, own: Path, raw: Path, check: bool = False) -> None:
    """Fetch `download.dataset` into the folder RAW; OWN holds a person's images, for the data set `own`.

    With --check only ask whether it can be had here and now: the exit status is 69 if no mirror delivers it.
    """
    section = read_section(params, "download", Download)
    if check:
        datasets.DATASETS[section.dataset].check(raw)
        return
    datasets.fetch(section.dataset, raw, own)
    say(f"{section.dataset}: complete in {raw}")


if __name__ == "__main__":
    run(download)
