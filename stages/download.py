"""Fetches the raw files of a data set, as published, and checks them."""

from pathlib import Path

from stages.core.command import echo, run_stage
from stages.core.params import Section, read_section
from stages.sources import catalog as datasets


class Download(Section):
    dataset: datasets.DatasetName


def download(*, params: Path, own: Path, raw: Path, check: bool = False) -> None:
    """Fetch the raw files of the data set that `download.dataset` names.

    Args:
        params: The params file; its section `download` is read.
        own: Folder of your own images, for the data set `own`.
        raw: Output folder of the raw files.
        check: Only check that the data set is available now. The exit status is 69 if no mirror delivers it. Of your
            own images it prints how many there are, their sizes and colour, and which params are for such images.
    """
    section = read_section(params, "download", Download)
    if check:
        datasets.DATASETS[section.dataset].check(raw, own)
        return
    datasets.fetch_dataset(section.dataset, raw, own)
    echo(f"{section.dataset}: complete in {raw}")


if __name__ == "__main__":
    run_stage(download)
