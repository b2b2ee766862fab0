"""First lists of a protocol against sorting each query's scores; several sinks get the depth that each asked for."""

import numpy as np

from eval.logs import Live, Queries
from eval.protocols import FullCatalogue, Measures
from eval.protocols.first_lists import FirstLists, Several
from eval.rankers import VectorRanker

N, Q = 30, 17


def test_first_lists_are_the_best_allowed_items(monkeypatch):
    monkeypatch.setattr("eval.protocols.full_catalogue.BLOCK", 5 * N)  # several blocks
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=(N, 4)).astype(np.float32) for name in ("a", "b")}
    since = np.where(np.arange(N) < 25, 0, 100)  # five come later
    live = Live(since, np.full(N, 1000), "")
    asked = rng.integers(0, N, Q)
    none = np.zeros(0)
    queries = Queries(
        np.arange(Q).astype(object), np.full(Q, "", object), np.zeros(Q, int), np.arange(Q) * 10, asked,
        np.zeros(Q + 1, int), none.astype(int), none, none.astype(int),
    )  # fmt: skip
    seen = {}

    def deep(ranker, at, candidates, scores):
        seen.setdefault(ranker, []).append(candidates)

    first = FirstLists(Q, k=28)
    sink = Several((first, 28), (deep, 3))
    assert sink.depth == 28
    protocol = FullCatalogue(queries=queries, live=live, measures=Measures(("MRR",)))
    protocol.rank([VectorRanker(name, x) for name, x in vectors.items()], sink=sink, sink_depth=sink.depth)
    assert list(first.lists) == ["a", "b"]
    for name, x in vectors.items():
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        for query in range(Q):
            score = unit @ unit[asked[query]]
            there = [i for i in range(N) if i != asked[query] and since[i] <= query * 10]
            best = sorted(there, key=lambda i: -score[i])[:28]
            assert first.lists[name][query].tolist() == best + [-1] * (28 - len(best))
        np.testing.assert_array_equal(np.concatenate(seen[name]), first.lists[name][:, :3])
