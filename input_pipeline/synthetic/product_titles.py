"""Titles for the synthetic catalogue, worded the way sellers word them: in any order, with and without frills.

A title always names the type and the colour, and the pattern unless it is plain. Brand, audience, line and the
rest come and go.
"""

from __future__ import annotations

import numpy as np

# The first word of each is the attribute's own value and the likeliest one in a title.
TYPE_WORDS: dict[str, tuple[str, ...]] = {
    "shirt": ("shirt", "button shirt", "cotton shirt"),
    "trousers": ("trousers", "casual trousers", "pants"),
    "sneakers": ("sneakers", "canvas sneakers", "trainers"),
    "handbag": ("handbag", "flap handbag", "bag"),
    "watch": ("watch", "analogue watch", "wristwatch"),
    "mug": ("mug", "coffee mug", "cup"),
    "chair": ("chair", "dining chair", "padded chair"),
    "umbrella": ("umbrella", "folding umbrella", "brolly"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "jet black"),
    "white": ("white", "off-white"),
    "red": ("red", "cherry red"),
    "yellow": ("yellow", "sunny yellow"),
    "green": ("green", "leaf green"),
    "blue": ("blue", "royal blue"),
}
# As an adjective before the noun, and as a phrase after it.
PATTERN_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("", "", "plain", "solid"), ("", "", "in a solid colour")),
    "striped": (("striped", "stripy"), ("with stripes", "stripe pattern")),
    "dotted": (("dotted", "polka dot"), ("with dots", "polka dot pattern")),
}
_AUDIENCE_WORDS = {"women": ("women's", "ladies'"), "men": ("men's", "mens"), "kids": ("kids'", "children's")}
_FRILLS = {
    "clothes": ("size S", "size M", "size L", "barely worn", "worn twice", "washed once"),
    "carried": ("one size", "worn twice", "with box", "everyday", "for travel", "for town"),
    "home": ("boxed", "set of one", "no scratches", "from a smoke-free home", "for the kitchen", "for the office"),
    "any": ("new", "like new", "free shipping", "unused", "gift idea", "as pictured", "good condition", "great find"),
}


def write_title(
    rng: np.random.Generator, *, type: str, colour: str, pattern: str, brand: str, audience: str, line: str
) -> str:
    """One seller's wording of a product; another call words it otherwise."""

    def pick(words: tuple[str, ...], first: float = 0.0) -> str:
        return words[0] if rng.random() < first else str(rng.choice(words))

    noun = pick(TYPE_WORDS[type], first=0.5)
    hue = pick(COLOUR_WORDS[colour], first=0.7)
    before, after = PATTERN_WORDS[pattern]

    adjectives, tail = [], []
    if rng.random() < 0.65:
        adjectives.append(pick(before, first=0.5))
    else:
        tail.append(pick(after))
    if rng.random() < 0.6:
        adjectives.append(hue)
    else:
        tail.append(f"in {hue}" if rng.random() < 0.4 else hue)
    rng.shuffle(adjectives)
    if audience in _AUDIENCE_WORDS and rng.random() < 0.55:
        if rng.random() < 0.6:
            adjectives.insert(0, pick(_AUDIENCE_WORDS[audience]))
        else:
            tail.append(f"for {audience}")
    rng.shuffle(tail)

    use = "home" if audience == "home" else "clothes" if type in ("shirt", "trousers", "sneakers") else "carried"
    frills = _FRILLS["any"] + _FRILLS[use]
    if rng.random() < 0.35:
        tail.append(pick(frills))
    name = f"{brand} {line}" if rng.random() < 0.2 else brand
    head = " ".join(word for word in [*adjectives, noun] if word)
    place = rng.random()
    if place < 0.55:
        head = f"{name} {head}"
    elif place < 0.75:
        head = f"{head} by {name}"
    elif place < 0.88:
        tail.append(name)

    separator = str(rng.choice([", ", " - ", " ", ", "]))
    title = separator.join(part for part in [head, *tail] if part)
    manner = rng.random()
    if manner < 0.05:
        return title.upper()
    return title[0].upper() + title[1:] if manner < 0.8 else title
