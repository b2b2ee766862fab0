"""docs/reference/config.md, written from the tables of `config_fields`.

python -m siglip_jax.training.config_reference > docs/reference/config.md
"""

from __future__ import annotations

from typing import Any

from siglip_jax.training.config import FINETUNE_REASONS, TABLES, fields
from siglip_jax.training.config_fields.field import Field, FieldTable

HEAD = """\
# Config fields

`siglip_jax.training.config.default_config()` has these fields and defaults. A config file changes some of them, and
`--config.optimizer.learning_rate=1e-4` on the command line changes one more:

```python
from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    config.batch_size = 1024
    config.optimizer.learning_rate = 1e-4
    return config.lock()
```

A field that does not exist and a value of another type are errors. A run is continued with the values it started
with; fields marked * may change in between.

`make docs` makes this page from `siglip_jax/training/config_fields`.
"""


def reference() -> str:
    """The page, Markdown."""
    return "\n".join([HEAD, *map(_section, TABLES), _finetuning()])


def _section(table: FieldTable) -> str:
    rows = [_row(name, field) for name, field in table.fields.items()]
    title = f"{table.title}: `config.{table.group}`" if table.group else table.title
    head = ["| field | default | what it does | values |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", table.text, "", *head, *rows, ""])


def _row(name: str, field: Field) -> str:
    mark = " *" if field.free else ""
    expected = field.values.expected or _TYPES.get(type(field.default), "")
    return _cells(f"`{name}`{mark}", _code(field.default), field.text, expected)


_TYPES: dict[type, str] = {bool: "True, False", int: "a whole number", float: "a number", str: "text"}


def _finetuning() -> str:
    defaults = dict(fields())
    rows = [
        _cells(f"`{name}`", _code(defaults[name].default), _code(value), why)
        for name, (value, why) in FINETUNE_REASONS.items()
    ]
    return "\n".join(
        [
            "## Fine-tuning defaults",
            "",
            "`finetune_config(init)` loads the model `init` and has other defaults in these fields:",
            "",
            "| field | `default_config()` | `finetune_config(init)` | why |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _cells(*texts: str) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _code(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else f'"{value}"'
    return f"`{text}`"


if __name__ == "__main__":
    print(reference(), end="")
