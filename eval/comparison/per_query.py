"""The metrics of every query and ranker of a comparison, as Parquet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from eval.comparison.protocol_result import ProtocolResult


def write_per_query(path: epath.PathLike, result: ProtocolResult) -> None:
    """One line for each query and ranker as Parquet: the query's columns, protocol, row, tied, and the metrics."""
    metrics, count = result.metrics, len(result.protocol)
    rankers = len(metrics)
    table: dict[str, Any] = {
        name: pa.array(np.tile(values, rankers)) for name, values in result.queries.columns.items()
    }
    table["protocol"] = pa.array([result.protocol.name] * (rankers * count))
    table["row"] = pa.array([name for name in metrics for _ in range(count)])
    table["tied"] = pa.array(np.concatenate([result.tied[name] for name in metrics]))
    for metric in next(iter(metrics.values())):
        values = np.concatenate([metrics[name][metric] for name in metrics])
        table[metric] = pa.array(values, mask=np.isnan(values))
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        pq.write_table(pa.table(table), file)
