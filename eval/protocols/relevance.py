"""Graded relevance declared as data: which attributes two items must share to be worth which gain.

rules = [{"gain": 3, "agree": ["articleType", "gender", "baseColour", "usage"]},
         {"gain": 2, "agree": ["articleType", "gender"]},
         {"gain": 1, "agree": ["subCategory"]}]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from siglip_jax.errors import UserError

MAX_GAIN = 10


@dataclass(frozen=True)
class RelevanceRule:
    """`gain` for a pair of items that agree in every attribute of `agree`."""

    gain: int
    agree: tuple[str, ...]


class AttributeRelevance:
    """Graded relevance of every item for every item, by attribute agreement.

    The rule with the highest gain that matches gives the label, 0 when none does. Two items agree in an attribute when
    its texts are equal, character for character, and not empty: an empty (or None) value agrees with nothing, not even
    another empty one. "NA" and the like are text as any other. An item is never relevant for itself.
    """

    def __init__(
        self,
        rules: Sequence[RelevanceRule | Mapping],
        attributes: Mapping[str, Sequence[str | None]],
    ):
        """Codes the attributes; memory is 4 bytes per item and rule.

        Args:
          rules: in any order, gains whole numbers from 1 to 10, no two alike; mappings of any kind, ConfigDict too.
          attributes: {name: value of each item}, all of one length.

        Raises:
          UserError: a malformed or repeated rule, an unknown attribute, or columns of differing lengths.
        """
        self.rules = _checked_rules(rules)
        lengths = {name: len(values) for name, values in attributes.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"attributes of differing lengths {lengths}: expected one value per item in each")
        self.items = next(iter(lengths.values()), 0)
        for rule in self.rules:
            unknown = [name for name in rule.agree if name not in attributes]
            if unknown:
                known = ", ".join(attributes) or "none"
                raise UserError(
                    f"relevance rule names attribute {unknown[0]!r}: the catalogue's attributes are {known}"
                )
        codes = {name: _codes(attributes[name]) for rule in self.rules for name in rule.agree}
        self._codes = [_joint_codes([codes[name] for name in rule.agree]) for rule in self.rules]

    def __len__(self) -> int:
        return self.items

    @property
    def max_grade(self) -> int:
        """The highest grade that a pair can have, as the rules declare it."""
        return self.rules[0].gain

    def labels(self, query_rows: slice | np.ndarray) -> np.ndarray:
        """Labels of all items for the given query items: uint8 [query, item]; an item's label for itself is 0."""
        rows = np.arange(self.items)[query_rows]
        out = np.zeros((len(rows), self.items), np.uint8)
        for rule, codes in zip(
            reversed(self.rules), reversed(self._codes), strict=True
        ):  # the highest gain writes last
            query = np.where(codes[rows] < 0, -2, codes[rows])  # an empty value (-1) matches no code
            out[query[:, None] == codes] = rule.gain
        out[np.arange(len(rows)), rows] = 0
        return out


def _checked_rules(rules: Sequence[RelevanceRule | Mapping]) -> tuple[RelevanceRule, ...]:
    """The rules by descending gain."""
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        raise UserError(f'relevance rules {rules!r}: expected a list of {{"gain": 2, "agree": ["attribute", ...]}}')
    checked: list[RelevanceRule] = []
    for rule in rules:
        given: Any = rule
        if isinstance(rule, RelevanceRule):
            given = {"gain": rule.gain, "agree": rule.agree}
        elif hasattr(rule, "keys"):  # a ConfigDict is no collections.abc.Mapping
            given = dict(rule)
        if not isinstance(given, dict) or set(given) != {"gain", "agree"}:
            raise UserError(f'relevance rule {given!r}: expected {{"gain": 2, "agree": ["attribute", ...]}}')
        gain, agree = given["gain"], given["agree"]
        if isinstance(gain, bool) or not isinstance(gain, (int, np.integer)) or not 1 <= gain <= MAX_GAIN:
            raise UserError(f"relevance rule {given!r}: gain must be a whole number from 1 to {MAX_GAIN}")
        listed = isinstance(agree, Sequence) and not isinstance(agree, str) and all(isinstance(a, str) for a in agree)
        if not listed or not agree or len(set(agree)) != len(agree):
            raise UserError(f"relevance rule {given!r}: agree must list one or more different attributes")
        for other in checked:
            if other.gain == gain or set(other.agree) == set(agree):
                raise UserError(f"relevance rules {vars(other)} and {given}: gains and attribute lists must differ")
        checked.append(RelevanceRule(int(gain), tuple(agree)))
    if not checked:
        raise UserError('no relevance rule: expected at least one {"gain": 1, "agree": ["attribute", ...]}')
    return tuple(sorted(checked, key=lambda rule: -rule.gain))


def _codes(values: Sequence[str | None]) -> np.ndarray:
    """Integer code of each value, -1 for an empty one: int32 [item]."""
    table: dict[str, int] = {}
    return np.fromiter((table.setdefault(v, len(table)) if v else -1 for v in values), np.int32, len(values))


def _joint_codes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One code per combination of values, -1 where any is empty: int32 [item]."""
    stacked = np.stack(columns, axis=1)
    joint = np.unique(stacked, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)
    return np.where((stacked < 0).any(axis=1), np.int32(-1), joint)


class Relevance(Protocol):
    """Graded relevance of n items for each other; `eval.protocols.relevance.AttributeRelevance` is one."""

    def __len__(self) -> int: ...

    def labels(self, query_rows: slice | np.ndarray) -> np.ndarray:
        """Labels >= 0 of all items for the query items: [query, n]."""
