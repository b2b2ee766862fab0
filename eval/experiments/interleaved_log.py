"""Taps in interleaved lists, credited to the ranker that put the item there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.experiments.event_log import Events, ExperimentLog, read_events
from eval.experiments.interleaving import draft_lists
from eval.logs.database import literal
from eval.simulate import PREFIX
from siglip_jax.errors import UserError

LISTS = ("list_id", "query_item_id", "position", "item_id", "ranker")


@dataclasses.dataclass(frozen=True)
class Credits:
    """Requests in which something was tapped: user [r], credits int [r, 2], of `names`; counts of what there was."""

    users: np.ndarray
    credits: np.ndarray
    names: tuple[str, str]
    requests: int
    notes: list[str]
    simulated: bool = False


def drafted_table(
    rankers: Sequence[Any],
    ids: Sequence[str],
    asked: Sequence[str],
    *,
    names: Sequence[str],
    length: int,
    drafts: int,
    seed: int,
) -> pa.Table:
    """Interleaved lists, columns LISTS; a list is called by its query item and its number.

    Args:
      rankers, length, drafts, seed: as of `draft_lists`; names: of the rankers.
      ids: of the catalogue.
      asked: ids of the query items.

    Raises:
      UserError: query items that are not in the catalogue, a catalogue of one item, or as of `draft_lists`.
    """
    place = {item: row for row, item in enumerate(ids)}
    if unknown := [item for item in asked if item not in place]:
        raise UserError(f"--queries: {len(unknown)} ids are not in the stores, such as {unknown[0]!r}")
    if len(ids) < 2 or not asked:
        raise UserError("--store: expected two items or more, and a query item")
    columns: dict[str, list[Any]] = {name: [] for name in LISTS}
    queries = np.array([place[item] for item in asked])
    for query, draft, drafted, teams in draft_lists(rankers, queries, length=length, drafts=drafts, seed=seed):
        columns["list_id"] += [f"{ids[query]}#{draft}"] * len(drafted)
        columns["query_item_id"] += [ids[query]] * len(drafted)
        columns["position"] += range(len(drafted))
        columns["item_id"] += [ids[row] for row in drafted]
        columns["ranker"] += [names[team] for team in teams]
    return pa.table(columns)


def write_lists(path: str | Path, table: pa.Table, *, rankers: Sequence[str]) -> None:
    """Interleaved lists, columns LISTS, with the rankers' names in their order."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"interleaving": "team-draft", "rankers": json.dumps(list(rankers))}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def read_lists(path: str) -> pa.Table:
    """UserError where the file is none of `write_lists`."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--interleaved={path}: expected the .parquet that siglip-jax interleave wrote") from error
    if lost := [name for name in LISTS if name not in table.column_names]:
        raise UserError(f"--interleaved={path}: no column {lost[0]}; expected what siglip-jax interleave wrote")
    return table


def read_credits(lists: str, logs: Sequence[str], form: ExperimentLog, *, action: str) -> Credits:
    """The taps of a log on items of interleaved lists.

    Rows of the log name the list that was shown (list_id), the item and the user. A request is a query_id, or a user
    with a list where the log has no query_id. Taps on one item of a request count once.

    Raises:
      UserError: lists that are none, a log without list_id or item_id, no tap on any of their items.
    """
    table = read_lists(lists)
    order = json.loads((table.schema.metadata or {}).get(b"rankers", b"[]"))
    names = [*order, *sorted(set(table["ranker"].to_pylist()) - set(order))]
    if len(names) != 2:
        raise UserError(f"--interleaved={lists}: rankers {', '.join(names)}; expected two")
    with read_events(logs, form, variants=False) as events:
        return _credits(events, table, (names[0], names[1]), lists=lists, action=action)


def _credits(events: Events, table: pa.Table, names: tuple[str, str], *, lists: str, action: str) -> Credits:
    if lost := [name for name in ("list_id", "item_id") if name not in events.columns]:
        raise UserError(f"the log has no column {lost[0]}: name it with --log_column={lost[0]}=COLUMN")
    if action not in events.actions:
        raise UserError(f"--credit={action}: no such action; there are {', '.join(events.actions)}")
    sql = events.sql
    request = "coalesce(query_id, user_id || ' ' || list_id)"
    columns = {name: table[name].cast(pa.string()) for name in ("list_id", "item_id", "ranker")}
    with sql.table("drafted", columns):
        (requests,) = sql.one(
            f"select count(distinct {request}) from events where list_id in (select list_id from drafted)"
        )
        tapped = f"from events where action = {literal(action)} and list_id is not null"
        taps, joined = sql.one(
            "select count(*), count(*) filter ((list_id, item_id) in (select (list_id, item_id) from drafted)) "
            f"{tapped}"
        )
        users, first, second = sql.arrays(
            f"select min(user_id), count(distinct events.item_id) filter (ranker = {literal(names[0])}), "
            f"count(distinct events.item_id) filter (ranker = {literal(names[1])}) from events join drafted "
            f"using (list_id, item_id) where action = {literal(action)} group by {request} order by {request}"
        )
        (example,) = sql.one("select min(list_id) from events")
    if not len(users):
        ours = table["list_id"][0].as_py() if table.num_rows else "none"
        raise UserError(
            f"no {action} of the log is on an item of {lists}: a list is called {example!r} in the log, {ours!r} in "
            "the file; log the list_id of the file"
        )
    notes = [*events.notes]
    if taps > joined:
        notes.append(
            f"{taps - joined:,} of {taps:,} {action} events are on no item of these lists, and count for nobody"
        )
    credits = np.stack([first, second], axis=1).astype(np.int64)
    return Credits(users, credits, names, int(requests), notes, str(users[0]).startswith(PREFIX))
