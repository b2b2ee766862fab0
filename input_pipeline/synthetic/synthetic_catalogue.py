"""A synthetic catalogue: rendered products with marketplace-like titles, for the demo and the tests.

Nothing in it is real: the products are drawn, the brands and sellers invented. It has what real catalogues have:
variants of a product, relisted items, and a few faults put there on purpose. The seed determines every byte.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.synthetic.product_images import COLOURS, MARKS, PATTERNS, Look, photograph
from input_pipeline.synthetic.product_titles import TYPE_WORDS, write_title
from siglip_jax.errors import UserError

COLUMNS = ("id", "title", "image", "type", "colour", "pattern", "brand", "line", "audience", "seller")
_BRANDS = dict(zip(("Norvik", "Tessaro", "Quillon", "Bramwyn", "Veltane", "Okumi"), MARKS, strict=True))
_LINES = ("Alta", "Brisk", "Cove", "Dune", "Ember", "Fjell", "Gale", "Hush", "Isla", "Juno", "Kite", "Loom")
_HOME = ("mug", "chair")
_SELLERS = 60
_RELISTED = 0.09  # share of the rows
_MARKER = "SYNTHETIC.txt"
_NOTE = "This catalogue is synthetic: pictures, titles, brands and sellers are made up by input_pipeline.synthetic.\n"


@dataclass(frozen=True)
class _Product:
    """One product: what it looks like and what sellers may say of it."""

    look: Look
    brand: str
    line: str
    audience: str


@dataclass
class _CatalogueRow:
    """One row of items.tsv, in the order of COLUMNS."""

    id: str
    title: str
    image: str
    type: str
    colour: str
    pattern: str
    brand: str
    line: str
    audience: str
    seller: str


def write_synthetic_catalogue(
    folder: str | Path, *, items: int = 1600, seed: int = 0, size: int = 64
) -> dict[str, int]:
    """Write `items.tsv` (`items` rows and a header) and `images/` (size x size pixels) into `folder`.

    Relevance for ranking comes from the columns: type, colour and pattern say what a picture shows. A relisted item is
    another id and seller with the same title (a third of them), the byte-identical picture (a third) or both. The
    faults, about 1 % of the rows, are what a reader must survive: a truncated JPEG, a missing file, an empty title, a
    repeated id, a text file named .jpg.

    Returns the counts: rows, pictures (files), products, variants (rows that differ in colour or pattern from another
    row of the same brand, line and type), relists, and one for each kind of fault.

    Raises UserError for fewer than 20 items or a size below 16, and for a folder that holds something else.
    """
    if items < 20 or size < 16:
        raise UserError(
            f"items={items}, size={size}: a synthetic catalogue needs items of 20 or more and size of 16 or more"
        )
    folder = Path(folder)
    _prepare(folder, _note(items, seed, size))
    rng = np.random.default_rng([seed, 0])
    shelf = list(itertools.islice(_products(rng), items))
    products = (shelf[i] for i in rng.permutation(items))  # so that a product's variants do not lie side by side

    rows: list[_CatalogueRow] = []
    pictures: dict[str, bytes] = {}
    photographed: list[_Product] = []
    relists = 0
    for number in range(items):
        name = f"s{number:05d}"
        if number >= 10 and rng.random() < _RELISTED:
            source = int(rng.integers(number))
            row, picture = _relist(rng, rows[source], pictures[rows[source].image], photographed[source], name, size)
            photographed.append(photographed[source])
            relists += 1
        else:
            product = next(products)
            row, picture = _list_item(rng, product, name, size)
            photographed.append(product)
        rows.append(row)
        pictures[row.image] = picture

    faults = _spoil(rng, rows, pictures)
    for path, content in pictures.items():
        (folder / path).write_bytes(content)
    lines = ["\t".join(COLUMNS), *("\t".join(asdict(row).values()) for row in rows)]
    table = folder / ".items.tsv.partial"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    table.replace(folder / "items.tsv")  # last and in one step: where it is, the catalogue is whole

    looks: dict[tuple[str, str, str], set[Look]] = {}
    for product in photographed:
        looks.setdefault((product.brand, product.line, product.look.type), set()).add(product.look)
    variants = sum(len(looks[p.brand, p.line, p.look.type]) > 1 for p in photographed)
    counts = {"rows": len(rows), "pictures": len(pictures), "products": len(set(photographed))}
    return counts | {"variants": variants, "relists": relists} | faults


def is_written(folder: str | Path, *, items: int, seed: int, size: int = 64) -> bool:
    """Whether `folder` holds just what `write_synthetic_catalogue` with these arguments writes, and all of it.

    Files are counted, not read.
    """
    folder = Path(folder)
    try:
        if (folder / _MARKER).read_text(encoding="utf-8") != _note(items, seed, size):
            return False
        rows = (folder / "items.tsv").read_bytes().count(b"\n") - 1
        return rows == items and len(list((folder / "images").iterdir())) == items - _faults_of_each_kind(items)
    except (OSError, UnicodeDecodeError):
        return False


def _note(items: int, seed: int, size: int) -> str:
    return f"{_NOTE}items={items} seed={seed} size={size}\n"


def _prepare(folder: Path, note: str) -> None:
    """Make the folders; empty an earlier synthetic catalogue's, and refuse to touch anything else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise UserError(f"{folder}: not empty and not a synthetic catalogue; give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.tsv").unlink(missing_ok=True)  # first, so that what is half written never looks whole
    (folder / _MARKER).write_text(note, encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    for old in (folder / "images").iterdir():
        old.unlink()


def _products(rng: np.random.Generator) -> Iterator[_Product]:
    """Product after product, without end; one to four variants of each come one after the other."""
    types, colours = list(TYPE_WORDS), list(COLOURS)
    taken: set[tuple[str, str, str]] = set()
    while True:
        kind, brand = str(rng.choice(types)), str(rng.choice(list(_BRANDS)))
        name = line = str(rng.choice(_LINES))
        edition = 1
        while (kind, brand, line) in taken:  # once a name is used up, it goes on as "Alta 2", "Alta 3" ...
            edition += 1
            line = f"{name} {edition}"
        taken.add((kind, brand, line))
        audience = "home" if kind in _HOME else str(rng.choice(["women", "men", "kids"]))
        look = Look(
            kind, "", "", _BRANDS[brand], cut=float(rng.random()), pitch=float(rng.uniform(0.105, 0.155)), ink=""
        )
        choices = [(colour, pattern) for colour in colours for pattern in PATTERNS]
        for chosen in rng.choice(len(choices), size=int(rng.integers(1, 5)), replace=False):
            colour, pattern = choices[chosen]
            variant = replace(look, colour=colour, pattern=pattern, ink=str(rng.choice(["light", "dark"])))
            yield _Product(variant, brand, line, audience)


def _list_item(rng: np.random.Generator, product: _Product, name: str, size: int) -> tuple[_CatalogueRow, bytes]:
    """A new title and a new photograph of the product."""
    look = product.look
    said = {"type": look.type, "colour": look.colour, "pattern": look.pattern}
    said |= {"brand": product.brand, "line": product.line, "audience": product.audience}
    suffix = "png" if rng.random() < 0.05 else "jpg"
    row = _CatalogueRow(
        id=name,
        title=write_title(rng, **said),
        image=f"images/{name}.{suffix}",
        seller=f"seller-{int(rng.integers(_SELLERS)):02d}",
        **said,
    )
    return row, _encode(photograph(look, rng=rng, size=size), suffix)


def _relist(
    rng: np.random.Generator, row: _CatalogueRow, picture: bytes, product: _Product, name: str, size: int
) -> tuple[_CatalogueRow, bytes]:
    """The same product offered again by another seller, who copies the title, the picture or both."""
    fresh, photo = _list_item(rng, product, name, size)
    copied = str(rng.choice(["title", "picture", "both"]))
    number = (int(row.seller.removeprefix("seller-")) + 1 + int(rng.integers(_SELLERS - 1))) % _SELLERS
    fresh.seller = f"seller-{number:02d}"
    if copied != "picture":
        fresh.title = row.title
    if copied != "title":
        fresh.image = f"images/{name}.{row.image.rsplit('.', 1)[1]}"
        photo = picture
    return fresh, photo


def _encode(picture: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == "png":
        picture.save(buffer, "PNG", optimize=False)
    else:
        picture.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _faults_of_each_kind(items: int) -> int:
    return max(1, round(items / 500))


def _spoil(rng: np.random.Generator, rows: list[_CatalogueRow], pictures: dict[str, bytes]) -> dict[str, int]:
    """Put each kind of fault into its own rows, in place; one of each for every 500 rows."""
    each = _faults_of_each_kind(len(rows))
    jpegs = [i for i, row in enumerate(rows) if row.image.endswith(".jpg")]
    chosen = iter(int(i) for i in rng.permutation(jpegs))
    for _ in range(each):
        path = rows[next(chosen)].image
        pictures[path] = pictures[path][
            : len(pictures[path]) * 3 // 4
        ]  # past the header: it opens, then fails to decode
        del pictures[rows[next(chosen)].image]
        rows[next(chosen)].title = ""
        rows[next(chosen)].id = rows[next(chosen)].id
        pictures[rows[next(chosen)].image] = b"404 Not Found: this is no picture\n"
    kinds = ("truncated_jpeg", "missing_file", "empty_title", "duplicate_id", "not_a_picture")
    return dict.fromkeys(kinds, each)
