"""docs/reference/config.md: in step with the config."""

import pathlib

from siglip_jax.training.config import FINETUNE_DEFAULTS, default_config
from siglip_jax.training.config_reference import reference

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "reference" / "config.md"


def test_the_page_in_the_repository_is_in_step():
    assert PAGE.read_text(encoding="utf-8") == reference(), "make it again: make docs"


def rows(text: str) -> dict[str, list[str]]:
    """{field as `config` has it: cells}, read from the page's tables."""
    found, group = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            group = line.partition("`config.")[2].rstrip("`")
        elif line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found[f"{group}.{name.split('`')[1]}".lstrip(".")] = cells
    return found


def test_every_field_has_a_line_with_its_default():
    page, _, finetuning = reference().partition("## Fine-tuning defaults")
    config = default_config()
    names = {
        name
        for key, value in config.items()
        for name in ([f"{key}.{field}" for field in value] if hasattr(value, "keys") else [key])
    }
    found = rows(page)
    assert found.keys() == names
    assert found["optimizer.learning_rate"][0] == "`0.001`"
    assert found["model.image"][0] == "`{'width': 768, 'depth': 12, 'mlp_dim': 3072, 'heads': 12}`"
    assert all(len(cells) == 3 and all(cells) for cells in found.values())
    tuned = rows(finetuning)
    assert tuned.keys() == FINETUNE_DEFAULTS.keys()
    assert tuned["optimizer.learning_rate"][:2] == ["`0.001`", "`0.0001`"]
