"""Ranking metrics of many queries at once, exact under tied scores.

`ranking` is the entry: scores and labels in, a number for each query out. It cuts and sorts (`topk`, `sorting`), has
the formulas (`formulas`, summed by `cumulative`), their expectations over equal scores (`ties`), and names
(`metric_names`). `beyond_accuracy` measures what lists show, not whether it is right.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
