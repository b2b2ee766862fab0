"""The figures of every query and row of a comparison over logs, as Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

if TYPE_CHECKING:
    from eval.comparison.over_logs import Comparison


def write_per_query(path: epath.PathLike, comparison: Comparison) -> None:
    """One line for each query and row as Parquet: the query's columns, protocol, row, tied, and the metrics."""
    rows = len(comparison.metrics)
    table: dict[str, Any] = {name: pa.array(np.tile(values, rows)) for name, values in comparison.queries.items()}
    count = len(comparison.clusters)
    table["protocol"] = pa.array([comparison.report["protocol"]] * (rows * count))
    table["row"] = pa.array([name for name in comparison.metrics for _ in range(count)])
    table["tied"] = pa.array(np.concatenate([comparison.tied[name] for name in comparison.metrics]))
    for metric in next(iter(comparison.metrics.values())):
        values = np.concatenate([comparison.metrics[name][metric] for name in comparison.metrics])
        table[metric] = pa.array(values, mask=np.isnan(values))
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        pq.write_table(pa.table(table), file)
