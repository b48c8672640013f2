"""Fetch the raw files of a data set, as published, and check them."""

from pathlib import Path

from stages.core.command import echo, run_stage
from stages.core.params import Section, read_section
from stages.sources import catalog as datasets


class Download(Section):
    dataset: datasets.DatasetName


def download(*, params: Path, own: Path, raw: Path, check: bool = False) -> None:
    """Fetch `download.dataset` into the folder RAW; OWN holds a person's images, for the data set `own`.

    With --check only ask whether it can be had here and now: the exit status is 69 if no mirror delivers it.
    """
    section = read_section(params, "download", Download)
    if check:
        datasets.DATASETS[section.dataset].check(raw)
        return
    datasets.fetch_dataset(section.dataset, raw, own)
    echo(f"{section.dataset}: complete in {raw}")


if __name__ == "__main__":
    run_stage(download)
