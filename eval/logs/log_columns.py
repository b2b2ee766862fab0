"""Which column of a file is which of ours, and what to type where that cannot be known."""

from __future__ import annotations

from collections.abc import Mapping

from eval.logs.log_format import COLUMNS, REQUIRED, LogFormat
from siglip_jax.errors import UserError

# How other tools call our columns, lower case, without "_": offered, never taken.
_OTHER_NAMES = {
    "user_id": ("userid", "userpseudoid", "visitorid", "customerid", "clientid", "uid", "user", "sessionid", "session"),
    "time": ("timestamp", "eventtimestamp", "eventtime", "datetime", "eventdate", "createdat", "ts", "date"),
    "item_id": ("itemid", "productid", "movieid", "articleid", "sku", "aid", "asin", "item", "product"),
    "action": ("eventname", "eventtype", "event", "type", "interaction", "behavior", "click", "clicked", "label"),
    "query_id": ("queryid", "searchid", "requestid", "impressionid", "sessionid", "session"),
    "query_item_id": ("queryitemid", "anchorid", "sourceitemid", "refitemid"),
}
_SHOWN, _LETTERS = 20, 40  # columns, and letters of each


def choose_columns(columns: Mapping[str, str], form: LogFormat, file: object) -> dict[str, str]:
    """{our column: the file's} of those that are there.

    Args:
      columns: {name: type} of the file, "NESTED" where a value holds several.

    Raises:
      UserError: that says all that is missing, with the flags to type.
    """
    names = {ours: form.columns.get(ours, ours) for ours in COLUMNS}
    missing = {ours: names[ours] for ours in names if names[ours] not in columns}
    needed = [ours for ours in missing if ours in REQUIRED or ours in form.columns]
    there = {ours: theirs for ours, theirs in names.items() if theirs in columns}
    known = ", ".join(name[:_LETTERS] for name in list(columns)[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
    if form.like_from and "rating" not in there and "rating" not in needed:
        needed.append("rating")
    acted = form.like_from or "action" in there or "" in form.action_names
    if not acted and "action" not in needed:
        needed.append("action")
    nested = [name for name, kind in columns.items() if kind == "NESTED" and (needed or name in there.values())]
    if nested:
        raise UserError(
            f"log {file}: a row of it holds several items, in column {nested[-1]}; expected a row for each: unnest it, "
            f"in BigQuery with SELECT e.* EXCEPT ({nested[-1]}), i.* FROM events e, UNNEST({nested[-1]}) i"
        )
    if needed:
        said = ", ".join(missing.get(ours, ours) for ours in needed)
        flags = " ".join(f"--log_column={ours}={_likely(ours, columns) or '...'}" for ours in needed)
        every = "; where every row is a tap, with --log_action=tap" if "action" in needed else ""
        word = "columns" if len(needed) > 1 else "column"
        raise UserError(f"log {file}: no {word} {said}; columns are {known or 'none'}; name them with {flags}{every}")
    return there


def _likely(ours: str, columns: Mapping[str, str]) -> str:
    """A column that may be ours under another name; "" for none."""
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in reversed(list(columns))}
    return next((plain[name] for name in _OTHER_NAMES.get(ours, ()) if name in plain), "")


def likely_action(word: str, known: Mapping[str, float]) -> str:
    """Our action that a log's word may mean, to be offered; one of `known`, {action: gain}."""
    text, worth = word.lower(), [action for action, gain in known.items() if gain]
    for ours, signs in (
        ("impression", ("impression", "list", "show", "0", "false", "none")),
        ("purchase", ("purchase", "buy", "order", "transaction", "checkout")),
        ("like", ("like", "fav", "wish", "cart", "basket")),
        ("tap", ("",)),
    ):
        if ours in known and any(sign in text for sign in signs):
            return ours
    return worth[0]
