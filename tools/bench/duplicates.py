"""siglip-jax bench duplicates: what pictures that look alike cost to find, what is found and what is wrongly taken.

Pictures of a dataset are changed as shops change them, and looked for among all; pairs found among different files
are compared with an attribute that should agree; the search is timed on more rows than the dataset has.

siglip-jax bench duplicates --dataset=data/fashion --attribute=articleType
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

HASH_DISTANCES = (2, 4, 6)


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_dataset(values)
    flags.DEFINE_string("attribute", "", "What pictures that look alike should agree in.", flag_values=values)
    flags.DEFINE_integer("pictures", 500, "To change and look for.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rows", 1_000_000, "Of the timed search.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    import pyarrow.compute as pc

    from input_pipeline.dataset import open_split
    from input_pipeline.dataset.item_table import item_table, split_names
    from input_pipeline.duplicates.near_images import signatures
    from tools.bench import measuring

    table = item_table(values.dataset)
    table = table.filter(pc.equal(table["kind"], ""))
    labels = None
    if values.attribute:
        names = (
            [field.name for field in table.schema.field("attributes").type]
            if "attributes" in table.column_names
            else []
        )
        if values.attribute not in names:
            raise UserError(
                f"--attribute={values.attribute}: no such attribute; there are {', '.join(names) or 'none'}"
            )
        column = pc.struct_field(table["attributes"], values.attribute).combine_chunks()
        labels = column.dictionary_encode().indices.to_numpy()
    known = signatures(table["image_signature"])
    split = open_split(values.dataset, split_names(values.dataset)[0])
    places = np.linspace(0, len(split) - 1, min(values.pictures, len(split))).astype(int)
    pictures = [row["image"] for row in split.__getitems__(np.unique(places))]
    print(f"{measuring.machine()}; {len(known)} pictures, {len(pictures)} of them changed")
    print(measuring.table(*_cost(pictures)), "", sep="\n")
    print(measuring.table(*_found(pictures)), "", sep="\n")
    print(measuring.table(*_taken(known, labels, values.attribute)), "", sep="\n")
    print(_search(known, values.rows))


def _cost(pictures: list[bytes]) -> tuple[list[str], list[list[str]]]:
    from input_pipeline.duplicates.near_images import image_signature
    from siglip_jax.preprocessing import decode_image
    from tools.bench import measuring

    decoded = [decode_image(data) for data in pictures]
    runs: dict[str, Callable[[], Any]] = {
        "decoding": lambda: [decode_image(data) for data in pictures],
        "signature": lambda: [image_signature(pixels) for pixels in decoded],
    }
    seconds = measuring.interleaved(runs, repetitions=5)
    lines = [
        [
            name,
            f"{statistics.median(seconds[name]) / len(pictures) * 1e3:.2f}",
            f"{measuring.ratio(seconds[name], seconds['decoding']):.2f}",
        ]
        for name in runs
    ]
    return ["of a picture", "ms", "of decoding"], lines


def _changes() -> dict[str, Callable[[PIL.Image.Image], PIL.Image.Image]]:
    import PIL.ImageEnhance

    def saved(picture: PIL.Image.Image, quality: int, scale: float = 1) -> PIL.Image.Image:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        stream = io.BytesIO()
        picture.resize(size, PIL.Image.Resampling.LANCZOS).save(stream, "JPEG", quality=quality)
        return PIL.Image.open(stream).convert("RGB")

    def cropped(picture: PIL.Image.Image, share: float) -> PIL.Image.Image:
        across, down = picture.width * share, picture.height * share
        box = (across / 2, down / 2, picture.width - across / 2, picture.height - down / 2)
        return picture.transform(picture.size, PIL.Image.Transform.EXTENT, box, PIL.Image.Resampling.BICUBIC)

    return {
        "JPEG quality 60": lambda picture: saved(picture, 60),
        "JPEG quality 30": lambda picture: saved(picture, 30),
        "half the size": lambda picture: saved(picture, 85, 0.5),
        "1.5 times the size": lambda picture: saved(picture, 85, 1.5),
        "1 % cropped": lambda picture: cropped(picture, 0.01),
        "2 % cropped": lambda picture: cropped(picture, 0.02),
        "5 % cropped": lambda picture: cropped(picture, 0.05),
        "brightness 0.9": lambda picture: PIL.ImageEnhance.Brightness(picture).enhance(0.9),
        "brightness 1.15": lambda picture: PIL.ImageEnhance.Brightness(picture).enhance(1.15),
        "contrast 1.2": lambda picture: PIL.ImageEnhance.Contrast(picture).enhance(1.2),
    }


def _found(pictures: list[bytes]) -> tuple[list[str], list[list[str]]]:
    """The share of changed pictures that look like what they were."""
    from input_pipeline.duplicates.near_images import (
        HASH_NEAR,
        MAX_NEAR,
        NEAR,
        image_signature,
        leading_bits,
        near_matches,
    )
    from siglip_jax.preprocessing import decode_image

    originals = [PIL.Image.fromarray(decode_image(data)) for data in pictures]
    before = np.stack([image_signature(np.asarray(picture)) for picture in originals])
    lines = []
    for name, change in _changes().items():
        after = np.stack([image_signature(np.asarray(change(picture))) for picture in originals])
        hits = []
        for distance in (NEAR, MAX_NEAR):
            alike = [
                near_matches(b[None], a[None], distance=distance)[0] >= 0 for a, b in zip(before, after, strict=True)
            ]
            hits.append(f"{np.mean(alike):.3f}")
        coarse = np.bitwise_count(leading_bits(before) ^ leading_bits(after)) <= HASH_NEAR
        lines.append([name, *hits, f"{coarse.mean():.3f}"])
    return ["found after", f"{NEAR} bits", f"{MAX_NEAR} bits", f"{HASH_NEAR} of 64 alone"], lines


def _taken(known: np.ndarray, labels: np.ndarray | None, attribute: str) -> tuple[list[str], list[list[str]]]:
    """Pairs of different signatures that count as alike, and the largest group of linked pictures."""
    from input_pipeline.duplicates.groups import connected
    from input_pipeline.duplicates.near_images import MAX_NEAR, NEAR, leading_bits, near_hashes, near_image_pairs

    distinct, first = np.unique(known, axis=0, return_index=True)
    hashes, row = np.unique(leading_bits(known), return_index=True)

    def coarse(distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((row[a], row[b]) for a, b, _ in near_hashes(hashes, distance=distance))

    def fine(distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((first[a], first[b]) for a, b in near_image_pairs(distinct, distance=distance))

    rules = {f"{distance} bits of 256": fine(distance) for distance in (NEAR, MAX_NEAR)}
    rules |= {f"{distance} of 64 alone": coarse(distance) for distance in HASH_DISTANCES}
    lines = []
    for name, pairs in rules.items():
        nothing = np.empty(0, np.int64)
        a, b = (np.concatenate(side) for side in zip((nothing, nothing), *pairs, strict=True))
        largest = np.bincount(connected(np.stack([a, b]), len(known))).max()
        wrong = "–" if labels is None or not len(a) else f"{np.mean(labels[a] != labels[b]):.3f}"
        lines.append([name, str(len(a)), wrong, str(largest)])
    return ["taken for alike", "pairs", f"other {attribute or 'attribute'}", "largest group"], lines


def _search(known: np.ndarray, rows: int) -> str:
    """Seconds and memory of `near_groups`. Every copy of the dataset has other bits turned, so that no two are near."""
    import resource

    from input_pipeline.duplicates.near_images import near_groups
    from tools.bench import measuring

    rng = np.random.default_rng(0)
    copies = []
    for start in range(0, rows, len(known)):
        copy = known[: rows - start].copy()
        copy[:, :32] ^= rng.integers(0, 256, 32, dtype=np.uint8)
        copies.append(copy)
    many = np.concatenate(copies)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    groups, seconds = measuring.timed(lambda: near_groups(many))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    linked = np.bincount(groups)
    return (
        f"search among {rows} rows: {seconds:.1f} s, at most {more:.0f} MiB more; "
        f"{int((linked > 1).sum())} groups, the largest of {linked.max()}"
    )
