"""TREC files give pytrec_eval the numbers that were measured."""

import numpy as np
import pytest
import pytrec_eval

from eval.logs import Live, Queries
from eval.protocols import FullCatalogue, LoggedLists, Measures
from eval.rankers import VectorRanker
from eval.rankers.baselines import PopularityRanker
from eval.report.trec import TrecWriter, query_names, read_qrels, read_run
from siglip_jax.errors import UserError

METRICS = {
    "nDCG@5": "ndcg_cut_5",
    "precision@1": "P_1",
    "hit@5": "success_5",
    "recall@10": "recall_10",
    "MRR": "recip_rank",
}
MEASURES = Measures(tuple(METRICS), gain="linear")
N = 60


@pytest.mark.parametrize("protocol", ["lists", "retrieval"])
def test_trec_files_give_pytrec_eval_the_same_numbers(tmp_path, protocol, some_queries, vectors):
    """With ties too, under trec_eval's own rule; ids with blanks and slashes, a row with a name no file may have."""
    v = np.round(vectors(d=2))  # many items of one direction
    v[~v.any(axis=1)] = 1
    live = Live(np.zeros(N), np.full(N, 2000), "all")
    queries = some_queries(4)
    items = [f"item {i} / {i % 7}" for i in range(N)]
    names = query_names(queries)
    writer = TrecWriter(str(tmp_path), queries, names=names, items=items, protocol=protocol)
    rows = [VectorRanker("new ../ model", v), PopularityRanker(np.arange(N) // 9)]
    with writer:
        if protocol == "lists":
            found = LoggedLists(queries=queries, measures=MEASURES).rank(rows, sink=writer)
        else:
            found = FullCatalogue(queries=queries, live=live, measures=MEASURES).rank(rows, sink=writer)
    qrels = read_qrels(tmp_path / "qrels.txt")
    relevant = np.bincount(queries.owner[queries.gains > 0], minlength=len(queries)) > 0
    assert set(qrels) == {name for name, there in zip(names, relevant, strict=True) if there}
    for row, file in {"new ../ model": "run.new-model.txt", "popularity": "run.popularity.txt"}.items():
        run = read_run(tmp_path / file)
        keys = {key.replace("_5", ".5").replace("_10", ".10").replace("P_1", "P.1") for key in METRICS.values()}
        theirs = pytrec_eval.RelevanceEvaluator(qrels, keys).evaluate(run)
        assert set(theirs) == set(qrels)
        if found[row].tied.any():  # the file's scores, ranked here by trec_eval's rule
            ours = docid_metrics(qrels, run)
            for query, values in theirs.items():
                for name, key in METRICS.items():
                    assert ours[query][name] == pytest.approx(values[key], abs=1e-9), (row, name)
        for query in np.flatnonzero(relevant & ~found[row].tied):
            for name, key in METRICS.items():
                if name != "MRR" and name != "recall@10":  # ties behind the deepest cutoff of has_ties are not these
                    assert found[row].metrics[name][query] == pytest.approx(theirs[names[query]][key], abs=1e-9)


def docid_metrics(qrels, run):
    from eval.metrics import rank_metrics

    found = {}
    for query, scored in run.items():
        items = sorted({*scored, *qrels[query]})
        scores = np.array([[scored.get(item, -np.inf) for item in items]])
        labels = np.array([[qrels[query].get(item, 0) for item in items]])
        got = rank_metrics(scores, labels, metrics=tuple(METRICS), ties="docid", docids=np.array(items))
        found[query] = {name: float(values[0]) for name, values in got.items()}
    return found


def test_trec_refuses_what_the_format_cannot_say(tmp_path, some_queries):
    queries = some_queries()
    half = Queries(**{**vars(queries), "gains": queries.gains / 2})
    args = {"names": query_names(queries), "items": [str(i) for i in range(N)], "protocol": "p"}
    with pytest.raises(UserError, match=r"gain (0\.5|1\.5); qrels hold whole grades"):
        TrecWriter(str(tmp_path / "t"), half, **args)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt"):
        TrecWriter(str(tmp_path), queries, **args)
    assert (tmp_path / "notes.txt").read_text() == "mine"
