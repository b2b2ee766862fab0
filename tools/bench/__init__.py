"""siglip-jax bench: time, memory and FLOPs of one part of the library, beside its peers and its floor, in one run.

siglip-jax bench loss --batch=8192 --dim=768
siglip-jax bench encode
siglip-jax bench rank
siglip-jax bench build --rows=20000
siglip-jax bench duplicates --dataset=data/fashion --attribute=articleType
siglip-jax bench recipes --dataset=data/shop --workdir=runs/recipes --recipe="softmax: loss=softmax"
"""

# A bench is one file in this folder: `define_flags(values)`, `main(values)`, and a docstring that begins with
# "siglip-jax bench <name of the file>: " and a line about it. The other files are what benches share.

from __future__ import annotations

import ast
import pathlib


def _commands(folder: pathlib.Path) -> dict[str, str]:
    """{name: the line about it} of the benches in a folder; none is imported."""
    lines = {}
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first, beginning = docstring.partition("\n")[0], f"siglip-jax bench {path.stem}: "
        if first.startswith(beginning):
            lines[path.stem] = first.removeprefix(beginning)
    return lines


COMMANDS = _commands(pathlib.Path(__file__).parent)
