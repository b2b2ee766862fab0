"""Ranking metrics of many queries at once, exact under tied scores.

`ranking` is the entry: scores and labels in, a number for each query out, block by block (`block_metrics`, `threads`).
`metric_table` has one entry a metric, which is where to add one; `metric_names` reads its names. A metric is computed
from what `formulas` knows of a ranking: `topk` and `sorting` make it, `cumulative` sums along it, and `ties` has the
expectations over equal scores. `beyond_accuracy` measures what lists show, not whether it is right.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
