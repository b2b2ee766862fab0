"""Rankers side by side, and the report's numbers out.

`choose_rankers` makes a `RankersToCompare` of what the user names. `by_attributes` and `over_logs` (over a `LogTask`)
run a protocol of `eval.protocols` with them and give a `ProtocolResult`; `build_report` makes the report of any of these.
A new protocol is a `RankingProtocol` and a function that gives a `ProtocolResult`.
"""
