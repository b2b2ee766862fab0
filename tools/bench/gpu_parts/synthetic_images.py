"""A dataset of JPEG files that are made up, 224 to 640 pixels, for the parts that read images; made once a bench."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from tools.bench.gpu_parts.budget import PartBudget

SPLIT = "train"


def dataset_of(budget: PartBudget) -> pathlib.Path:
    """The folder of the dataset; built where no earlier part has."""
    from tools.bench.inputs import sample_images

    folder = budget.folder / "images"
    if not (folder / "dataset").exists():
        budget.folder.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(dir=budget.folder))
        sample_images.build(
            partial,
            dataset="",
            split=SPLIT,
            count=budget.choose(512, 16),
            sides=budget.choose((224, 640), (24, 40)),
            copies=budget.choose(8, 2),
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    return folder / "dataset"
