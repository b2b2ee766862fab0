"""Random changes to training titles: parts left out, parts in another order, attributes added.

A part is a word, or the words of an attribute's value ("navy blue"), which stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.augment.row_random import Purpose, draws, unit


def title_parts(title: str, values: Sequence[str] = ()) -> list[str]:
    """The parts of a title in order, then those of `values` that it does not have.

    A value is in a title where its words follow one another there, in upper or lower case; where values share words the
    longer one is kept together.
    """
    words = title.split()
    folded = [word.casefold() for word in words]
    length = [1] * len(words)  # of the part that begins at each word; 0 inside of one
    missing = set(values)
    for value in sorted(values, key=lambda value: -len(value.split())):
        wanted = value.casefold().split()
        for start in range(len(words) - len(wanted) + 1) if wanted else ():
            stretch = slice(start, start + len(wanted))
            if folded[stretch] == wanted:
                missing.discard(value)
                if set(length[stretch]) == {1}:
                    length[stretch] = [len(wanted)] + [0] * (len(wanted) - 1)
                    break
    parts = [" ".join(words[start : start + count]) for start, count in enumerate(length) if count]
    return parts + [" ".join(value.split()) for value in dict.fromkeys(values) if value in missing and value.split()]


def change_title(
    record: Mapping[str, object],
    row: int,
    *,
    dropout: float,
    shuffle: float,
    attributes: Sequence[str],
    choose: bool,
    seed: int,
    epoch: int,
) -> str:
    """A training title of a row of a split, drawn for (seed, epoch, row).

    Args:
      record: "title", "attributes" {name: value} and, where the item has others, "more_titles".
      dropout: probability of each part to be left out; one stays at least.
      shuffle: probability that the parts come in an order drawn at random.
      attributes: names of those whose values are parts, added where the title does not have them.
      choose: one of all titles of the item instead of its first.
    """

    def draw(purpose: int, count: int = 1) -> np.ndarray:
        return unit(draws(np.array([row]), seed=seed, epoch=epoch, purpose=purpose + np.arange(count)))

    title = str(record["title"])
    if choose and (others := record.get("more_titles") or ()):
        titles = [title, *others]  # type: ignore[misc]
        title = titles[int(draw(Purpose.TITLE)[0] * len(titles))]
    if not (dropout or shuffle or attributes):
        return title
    parts = title_parts(title, [record["attributes"][name] for name in attributes])  # type: ignore[index]
    if not parts:
        return title
    drawn = draw(Purpose.PART, len(parts))
    kept = np.flatnonzero(drawn >= dropout)
    if not len(kept):
        kept = np.array([drawn.argmax()])
    if draw(Purpose.SHUFFLE)[0] < shuffle:
        kept = kept[draw(Purpose.PLACE, len(parts))[kept].argsort(kind="stable")]
    return " ".join(parts[part] for part in kept)
