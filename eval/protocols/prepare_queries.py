"""What each protocol asks of a log, and what rankers may learn from it: queries, histories, windows of time."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from eval.logs import Log, LogFormat, Queries, known_items, read_queries, repeated_queries
from eval.logs.log_times import iso
from eval.protocols import user_profiles
from eval.protocols.full_catalogue import LEAVE_ONE_OUT, RETRIEVAL, TIME_SPLIT
from eval.protocols.logged_lists import LOGGED_LISTS
from eval.rankers import Ranker
from eval.rankers.baselines import PopularityRanker
from eval.rankers.item_to_item import CooccurrenceRanker
from siglip_jax.errors import UserError

MOSTLY = 0.9  # share of lists, or of what they show, from which on nearly all is relevant
PROTOCOLS = {
    "logged_lists": LOGGED_LISTS,
    "retrieval": RETRIEVAL,
    "leave_one_out": LEAVE_ONE_OUT,
    "time_split": TIME_SPLIT,
}


@dataclasses.dataclass(frozen=True)
class Window:
    """Times in microseconds since 1970, None for no bound; [since, until) each."""

    since: int | None = None
    until: int | None = None
    train_since: int | None = None
    train_until: int | None = None

    def checked(self) -> Window:
        """With the end of the training window where none was given: the begin of the evaluation.

        Raises:
          UserError: a window that is empty, or training that reaches into evaluation.
        """
        train_until = self.since if self.train_until is None else self.train_until
        if self.until is not None and self.since is not None and self.since >= self.until:
            raise UserError(f"--from={iso(self.since)} is not before --until={iso(self.until)}")
        if train_until is not None and (self.since is None or train_until > self.since):
            begins = "has no begin (--from)" if self.since is None else f"begins at {iso(self.since)}"
            raise UserError(
                f"the training window ends at {iso(train_until)} and the evaluation {begins}: they overlap; end the "
                "training before, with --train_until"
            )
        if self.train_since is not None and (train_until is None or self.train_since >= train_until):
            raise UserError(f"--train_from={iso(self.train_since)}: not before the end of the training window")
        return dataclasses.replace(self, train_until=train_until)


def log_format(
    config: ml_collections.ConfigDict,
    *,
    columns: Mapping[str, str],
    on_error: str,
    actions: Mapping[str, str] = types.MappingProxyType({}),
    segments: Sequence[str] = (),
) -> LogFormat:
    """From `config.evaluation` and the flags; actions: {the log's word: our action}; segments: columns of the log."""
    options = config.evaluation
    return LogFormat(
        actions=dict(options.actions),
        columns={**dict(options.log_columns), **columns},
        action_names={**dict(options.log_actions), **actions},
        time_unit=options.time_unit,
        like_from=options.like_from,
        first_position=options.first_position,
        on_error=on_error,
        segments=tuple(dict.fromkeys(segments)),
    )


@dataclasses.dataclass(frozen=True)
class CountedPairs:
    """Pairs of users and items, and which of them rankers may learn from: bool [pairs]."""

    pairs: user_profiles.Pairs
    chosen: np.ndarray

    def popularity(self, items: int) -> np.ndarray:
        """How many users liked each item: int64 [items]."""
        return user_profiles.popularity(self.pairs, self.chosen, items)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a protocol asks of a log.

    Attributes:
      history: of the users, where queries are profiles.
      counted: what rankers may learn from; None where there is nothing.
      training: what those are, in words.
    """

    queries: Queries
    history: user_profiles.History | None
    counted: CountedPairs | None
    training: str


def prepare(log: Log, protocol: str, options: Any, window: Window, kept: np.ndarray) -> Prepared:
    """Queries of the protocol, with those items of the catalogue alone that are `kept` (bool [n])."""
    if protocol in ("logged_lists", "retrieval"):
        lists = protocol == "logged_lists"
        queries = read_queries(log, query_item=options.query_item, lists=lists, since=window.since, until=window.until)
        queries = queries.keep(~repeated_queries(queries), reason="the same as an earlier query")
        queries = known_items(queries, items=log.items, rule=options.missing_items)
        queries = queries.only_items(kept, reason="in the training split")
        if lists:
            queries = queries.keep(queries.lengths > 1, reason="fewer than two candidates")
            if not len(queries):
                raise UserError("log: no list with two items of the catalogue; nothing to rank")
            _check_not_all_relevant(queries)
        if window.train_until is None:
            return Prepared(queries, None, None, "none")
        pairs = user_profiles.read_pairs(log, until=window.train_until)
        counted = np.ones(len(pairs), bool) if window.train_since is None else pairs.times >= window.train_since
        any_worth = bool((counted & (pairs.gains > 0)).any())
        begin = "the begin" if window.train_since is None else iso(window.train_since)
        training = f"{begin} to {iso(window.train_until)}"
        return Prepared(queries, None, CountedPairs(pairs, counted) if any_worth else None, training)
    if window.train_since is not None or (window.train_until is not None and window.train_until != window.since):
        raise UserError(f"--train_from, --train_until: {protocol} learns from the users' histories; leave them out")
    repeats = options.repeats
    pairs = user_profiles.read_pairs(log, until=window.until, repeats=repeats)
    pairs = pairs.only(kept[pairs.items])
    if protocol == "leave_one_out":
        queries, history, held_out = user_profiles.leave_one_out(
            pairs, profile=options.profile, since=window.since, repeats=repeats
        )
        training = "all events but the held-out ones, of any time"
        return Prepared(queries, history, CountedPairs(pairs, ~held_out), training)
    at = user_profiles.split_time(pairs) if window.since is None else window.since
    queries, history, _ = user_profiles.time_split(pairs, at=at, profile=options.profile, repeats=repeats)
    share = "the time before which 80 % of the events lie" if window.since is None else "as given"
    return Prepared(queries, history, CountedPairs(pairs, pairs.times < at), f"before {iso(at)} ({share})")


def _check_not_all_relevant(queries: Queries) -> None:
    """Refuses lists of which nearly every order is right: the log lacks what was shown and not acted upon."""
    relevant = np.bincount(queries.owner[queries.gains > 0], minlength=len(queries))
    acted, whole = int((relevant > 0).sum()), int((relevant == queries.lengths).sum())
    few = queries.gains[relevant[queries.owner] > 0] > 0
    if not acted or (whole < MOSTLY * acted and few.mean() < MOSTLY):
        return
    lists = f"all {acted} lists" if whole == acted else f"{whole} of {acted} lists"
    said = (
        f"in {lists} every item was acted upon"
        if whole >= MOSTLY * acted
        else f"{100 * few.mean():.0f} % of what lists show was acted upon"
    )
    raise UserError(
        f"log: {said}, so that nearly any order of them is right: the log has no impressions, or hardly any; add what "
        "was shown and not acted upon, as rows with action impression, or ask --protocol=retrieval, leave_one_out or "
        "time_split"
    )


def rankers_of_log(names: Sequence[str], counted: CountedPairs | None, items: int) -> dict[str, Ranker]:
    """Those that the log before the queries can tell of; none where there is nothing."""
    if counted is None:
        return {}
    liked = counted.pairs.only(counted.chosen & (counted.pairs.gains > 0))
    made: dict[str, Ranker] = {
        "popularity": PopularityRanker(counted.popularity(items)),
        "item-to-item": CooccurrenceRanker(liked.users, liked.items, items),
    }
    return {name: made[name] for name in names}
