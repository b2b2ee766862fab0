"""The synthetic catalogue: same bytes for the same seed, titles true to the attributes, the promised faults present."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.synthetic.product_images import COLOURS, PATTERNS
from input_pipeline.synthetic.product_shapes import SHAPES
from input_pipeline.synthetic.product_titles import COLOUR_WORDS, PATTERN_WORDS, TYPE_WORDS
from input_pipeline.synthetic.synthetic_catalogue import COLUMNS, is_written, write_synthetic_catalogue
from siglip_jax.errors import UserError

_ITEMS = 500
_FAULTS = ("truncated_jpeg", "missing_file", "empty_title", "duplicate_id", "not_a_picture")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("synthetic")
    counts = write_synthetic_catalogue(folder, items=_ITEMS, seed=3, size=32)
    lines = (folder / "items.tsv").read_text(encoding="utf-8").splitlines()
    return folder, counts, [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines[1:]]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_seed_determines_every_byte(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_catalogue(tmp_path / name, items=40, seed=seed, size=24)
    assert _content(tmp_path / "a") == _content(tmp_path / "b")
    assert _content(tmp_path / "a")["items.tsv"] != _content(tmp_path / "c")["items.tsv"]
    assert _content(tmp_path / "a")["images/s00000.jpg"] != _content(tmp_path / "c").get("images/s00000.jpg")


def test_writing_again_leaves_nothing_of_the_earlier_one(tmp_path: Path):
    write_synthetic_catalogue(tmp_path / "again", items=40, seed=9, size=24)
    write_synthetic_catalogue(tmp_path / "again", items=30, seed=1, size=24)
    write_synthetic_catalogue(tmp_path / "fresh", items=30, seed=1, size=24)
    assert _content(tmp_path / "again") == _content(tmp_path / "fresh")


def test_whether_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, wanted = tmp_path / "shop", {"items": 30, "seed": 1, "size": 24}
    assert not is_written(folder, **wanted)
    write_synthetic_catalogue(folder, **wanted)
    assert is_written(folder, **wanted)
    for other in ({"items": 31}, {"seed": 2}, {"size": 32}):
        assert not is_written(folder, **wanted | other)
    next((folder / "images").iterdir()).unlink()
    assert not is_written(folder, **wanted)

    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_catalogue(folder, **wanted)
    assert not (folder / "items.tsv").exists()
    assert not is_written(folder, **wanted)
    monkeypatch.undo()
    write_synthetic_catalogue(folder, **wanted)
    assert is_written(folder, **wanted)


def test_it_says_that_it_is_synthetic(catalogue):
    folder, _, _ = catalogue
    assert "synthetic" in (folder / "SYNTHETIC.txt").read_text()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "items.tsv").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_synthetic_catalogue(tmp_path, items=20)
    assert (tmp_path / "items.tsv").read_text() == "mine"


@pytest.mark.parametrize("options", [{"items": 5}, {"size": 4}])
def test_sizes_that_make_no_catalogue(tmp_path: Path, options: dict[str, int]):
    with pytest.raises(UserError, match="needs items of 20"):
        write_synthetic_catalogue(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_every_value_of_every_attribute_appears(catalogue):
    _, counts, rows = catalogue
    assert counts["rows"] == len(rows) == _ITEMS
    assert {row["type"] for row in rows} == set(SHAPES) == set(TYPE_WORDS)
    assert {row["colour"] for row in rows} == set(COLOURS) == set(COLOUR_WORDS)
    assert {row["pattern"] for row in rows} == set(PATTERNS) == set(PATTERN_WORDS)


def test_titles_name_type_colour_and_pattern_and_no_other(catalogue):
    _, _, rows = catalogue
    for row in rows:
        title = row["title"].lower()
        if not title:
            continue
        assert any(word in title for word in TYPE_WORDS[row["type"]]), row
        assert any(word in title for word in COLOUR_WORDS[row["colour"]]), row
        before, after = PATTERN_WORDS[row["pattern"]]
        assert row["pattern"] == "plain" or any(word in title for word in before + after), row
        for pattern, (others, phrases) in PATTERN_WORDS.items():
            if pattern != row["pattern"]:
                assert not any(word and word in title for word in others + phrases), row


def test_titles_are_worded_freely(catalogue):
    _, counts, rows = catalogue
    assert len({row["title"] for row in rows}) > 0.9 * (_ITEMS - counts["relists"])
    first_words = Counter(row["title"].split()[0].lower() for row in rows if row["title"])
    assert max(first_words.values()) < 0.2 * _ITEMS


def test_variants_differ_in_colour_or_pattern(catalogue):
    _, counts, rows = catalogue
    families = defaultdict(set)
    for row in rows:
        families[row["brand"], row["line"], row["type"]].add((row["colour"], row["pattern"]))
    in_families = sum(len(families[row["brand"], row["line"], row["type"]]) > 1 for row in rows)
    assert in_families == counts["variants"] > _ITEMS / 3


def test_relists_share_title_or_picture_with_another_seller(catalogue):
    folder, counts, rows = catalogue
    titles, pictures = defaultdict(list), defaultdict(list)
    for row in rows:
        titles[row["title"]].append(row)
        if (folder / row["image"]).exists():
            pictures[(folder / row["image"]).read_bytes()].append(row)
    same_title = [group for title, group in titles.items() if title and len(group) > 1]
    same_picture = [group for content, group in pictures.items() if len(group) > 1 and not content.startswith(b"404")]
    assert counts["relists"] > 20
    assert len(same_title) > 5
    assert len(same_picture) > 5
    for group in same_picture:
        assert len({row["image"] for row in group}) == len(group)
        assert len({(row["type"], row["colour"], row["pattern"], row["brand"]) for row in group}) == 1


def test_faults_are_those_counted(catalogue):
    folder, counts, rows = catalogue
    found = Counter(dict.fromkeys(_FAULTS, 0))
    for row in rows:
        path = folder / row["image"]
        found["empty_title"] += not row["title"]
        if not path.exists():
            found["missing_file"] += 1
            continue
        content = path.read_bytes()
        try:
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
        except Image.UnidentifiedImageError:
            found["not_a_picture"] += 1
        except OSError:
            found["truncated_jpeg"] += 1
    found["duplicate_id"] = len(rows) - len({row["id"] for row in rows})
    assert dict(found) == {kind: counts[kind] for kind in _FAULTS}
    assert all(counts[kind] >= 1 for kind in _FAULTS)


def test_pictures_have_the_size_and_both_formats(catalogue):
    folder, counts, _ = catalogue
    files = list((folder / "images").iterdir())
    assert len(files) == counts["pictures"]
    assert {path.suffix for path in files} == {".jpg", ".png"}
    png = next(path for path in files if path.suffix == ".png")
    with Image.open(png) as picture:
        assert (picture.size, picture.mode, picture.format) == ((32, 32), "RGB", "PNG")


def test_raw_pixels_do_not_solve_it(catalogue):
    """nDCG_exp@5 of centred raw-pixel cosine: 3 for type, colour and pattern, 2 for type and colour, 1 for type."""
    folder, _, rows = catalogue
    pixels, looks = [], []
    for row in rows:
        try:
            with Image.open(folder / row["image"]) as picture:
                pixels.append(np.asarray(picture.convert("RGB"), np.float32).ravel())
        except OSError:
            continue
        looks.append((row["type"], row["colour"], row["pattern"]))
    vectors = np.stack(pixels) - np.mean(pixels, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = np.array(looks)[:, None] == np.array(looks)[None]
    gains = 2.0 ** np.cumprod(same, axis=2).sum(axis=2) - 1
    np.fill_diagonal(gains, 0)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    discounts = 1 / np.log2(np.arange(5) + 2)
    best = -np.sort(-gains, axis=1)[:, :5] @ discounts

    def ndcg(scores: np.ndarray) -> float:
        return float(np.mean(np.take_along_axis(gains, np.argsort(-scores, axis=1)[:, :5], axis=1) @ discounts / best))

    assert best.min() > 0
    chance = ndcg(np.random.default_rng(0).random(scores.shape))
    assert chance < 0.1
    assert chance + 0.03 < ndcg(scores) < 0.35
