"""What an export changes of the ranking: items of a sample, ranked by the model's embeddings and by the export's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.comparison.items import Items
from eval.protocols import AttributeRelevance, Measures, rank_catalogue
from eval.statistics import paired_difference
from input_pipeline.duplicates.normalised_titles import title_groups
from siglip_jax.errors import UserError
from siglip_jax.export.golden import Call, read_answers, write_golden

METRIC = "nDCG@5"
SAMPLE = 256  # items; enough to see a hundredth
MAX_CHANGE = 0.01  # of the metric's mean
ROWS_AT_ONCE = 64
MOST_RULES = 3
_INTERVAL = {"difference": "mean", "low": "low", "high": "high"}  # ours: the name in `Interval`


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingSample:
    """Items, and the question to the export that embeds them.

    Attributes:
      items: what is ranked.
      rules: of relevance, as in `config.evaluation.relevance`.
      gain: of `config.evaluation.gain`.
      signature, inputs: of the question; each input has a row for each item, of "images" a batch of one.
      expected: what the model makes of them, as it leaves the export.
      whole: the model's embeddings where they leave smaller, else None.
      of: "images", "titles" or "stored vectors".
    """

    items: Items
    rules: Sequence[Mapping[str, Any]]
    gain: str
    signature: str
    inputs: Mapping[str, Any]
    expected: np.ndarray
    whole: np.ndarray | None
    of: str

    def write(self, folder: pathlib.Path, *, runtime: str) -> list[Call]:
        """Writes the questions, which `check_golden` answers."""
        calls = []
        of_sizes = self.signature == "images"
        step = 1 if of_sizes else ROWS_AT_ONCE
        for low in range(0, len(self.expected), step):
            rows = slice(low, low + step)
            inputs = {name: values[low] if of_sizes else values[rows] for name, values in self.inputs.items()}
            calls.append(Call(signature=self.signature, inputs=inputs, expected=self.expected[rows], of=self.of))
        write_golden(folder, calls, model="", runtime=runtime, compress=False)
        return calls

    def compare(self, folder: pathlib.Path, calls: Sequence[Call], *, max_change: float) -> dict[str, Any]:
        """For manifests: metric, of, items, relevance, model, export, difference, low, high, limit; and, of a smaller
        output, what it loses to whole embeddings, in "smaller". Or "not_measured", why.

        Raises:
          UserError: the means differ by more than `max_change`, and by more than chance: the interval leaves 0 out.
        """
        relevance = AttributeRelevance(tuple(self.rules), {"title": self.items.titles, **self.items.columns})
        measures = Measures((METRIC,), self.gain, max_grade=relevance.max_grade)
        clusters = title_groups(self.items.titles)

        def ranked(vectors: np.ndarray) -> np.ndarray:
            metrics = rank_catalogue(np.asarray(vectors, np.float32), relevance, measures).metrics
            return next(iter(metrics.values()))

        def change(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
            found = paired_difference(a, b, clusters=clusters)
            return {name: round(float(getattr(found, of)), 6) for name, of in _INTERVAL.items()}

        if not relevance.labels(slice(None)).any():
            return {"not_measured": "no item of the sample has a relevant one"}
        ours, theirs = ranked(self.expected), ranked(np.concatenate(read_answers(folder, calls)))
        found: dict[str, Any] = {
            "metric": METRIC,
            "of": self.of,
            "items": len(self.items.ids),
            "relevance": [{"gain": rule["gain"], "agree": list(rule["agree"])} for rule in self.rules],
            "model": round(float(np.nanmean(ours)), 6),
            "export": round(float(np.nanmean(theirs)), 6),
            **change(theirs, ours),
            "limit": max_change,
        }
        if self.whole is not None:
            found["smaller"] = change(ours, ranked(self.whole))
        if abs(found["difference"]) > max_change and not found["low"] <= 0 <= found["high"]:
            raise UserError(f"{told(found)}, which is more than --max_change={max_change:g}: it is not kept")
        return found


def told(found: Mapping[str, Any]) -> str:
    """One line of what `compare` found."""
    if "not_measured" in found:
        return f"what it changes of the ranking was not measured: {found['not_measured']}"
    line = (
        f"{found['metric']} of {found['items']} items by their {found['of']}: model {found['model']:.4f}, export "
        f"{found['export']:.4f}, difference {_interval(found)}"
    )
    if "smaller" in found:
        line += f"; the smaller embedding itself {_interval(found['smaller'])}"
    return line


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def rules_by_attributes(items: Items) -> list[dict[str, Any]]:
    """Relevance where no config says it: agreement of one, two, three attributes, from the coarsest on; maybe none.

    An attribute counts that has two values or more, shared by two items each on average.
    """
    kinds = {name: len(set(values)) for name, values in items.columns.items()}
    names = sorted(name for name, n in kinds.items() if 2 <= n <= len(items.ids) // 2)
    names.sort(key=lambda name: kinds[name])  # of as many values by name, since columns come in any order
    rules = [{"gain": n, "agree": tuple(names[:n])} for n in range(1, min(len(names), MOST_RULES) + 1)]
    return rules[::-1]
