"""`config.evaluation`. Read by `eval`, by the programs that rank, and while training by `tools.workflow.evaluators`."""

from __future__ import annotations

from siglip_jax.training.config_fields.field import Field, FieldTable, Values, all_free, at_least, one_of

EVALUATION = FieldTable(
    "Evaluation",
    "evaluation",
    "What is measured, while a model trains and by `siglip-jax rank`.",
    all_free(
        {
            "split": Field("test", "Split of the dataset to evaluate on.", Values("a split of the dataset")),
            "while_training": Field(
                ("retrieval", "ranking"),
                "Evaluations of a run, at each checkpoint: retrieval between images and titles; ranking as below; or a "
                "function of your own as `module:function` (docs/adding.md).",
                Values("names of evaluators (docs/guide/finetuning.md), or module:function"),
            ),
            "every": Field(
                0,
                "Steps between further evaluations, beside those at checkpoints.",
                at_least(0, "0 for none, or more"),
            ),
            "best_metric": Field(
                "",
                "Metric whose best checkpoint is kept, such as `image_to_text/recall@1`; `WORKDIR@best` loads it. "
                'Higher is better, but for names that end in "loss".',
                Values("a metric of `while_training`; empty for none"),
            ),
            "relevance": Field(
                ({"gain": 1, "agree": ("title",)},),
                "Graded relevance by agreement of attributes: the first rule that holds gives the gain.",
                Values('rules such as {"gain": 2, "agree": ("type", "colour")}'),
            ),
            "relevant_from": Field(
                1,
                "Smallest gain that precision, hit and recall count as relevant, of gains by `relevance`; over logs "
                "`log_relevant_from` says it.",
            ),
            "gain": Field(
                "exponential", "How nDCG counts a grade g: as g, or as 2^g - 1.", one_of("linear", "exponential")
            ),
            "metrics": Field(
                ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10"),
                "What is reported, the first one foremost.",
                Values("names of docs/guide/metrics.md"),
            ),
        }
    ),
)

LOGS = FieldTable(
    "Interaction logs",
    "evaluation",
    "How `siglip-jax rank --logs` reads a log (docs/guide/ranking.md). Read by `eval.logs` and `eval.protocols`.",
    all_free(
        {
            "actions": Field(
                dict(tap=1.0, like=2.0, purchase=3.0),
                'Gain of each action. "impression", being shown, is worth 0 and need not be named.',
                Values("numbers, one of them above 0; below 0 for what speaks against an item, such as hide"),
            ),
            "log_relevant_from": Field(
                1, "Smallest gain of an action that precision, hit and recall count as relevant over logs."
            ),
            "log_columns": Field(
                {}, "Columns of another name.", Values('{our name: the log\'s name}, such as {"time": "event_ts"}')
            ),
            "log_actions": Field(
                {},
                "What the log's words for actions mean.",
                Values('{the log\'s word: our action}, such as {"select_item": "tap"}; "" for rows without a word'),
            ),
            "time_unit": Field(
                "auto",
                "What numbers in the log's times are: since 1970, or digits of a date; auto goes by their size.",
                one_of("auto", "s", "ms", "us", "ns", "date"),
            ),
            "like_from": Field(
                0.0,
                'For a log with ratings: a rating from this number on is a "like", below it is "rated".',
                Values("0 for a log with actions"),
            ),
            "first_position": Field(
                -1,
                "Position of the first item in a list.",
                Values("-1 for 1 where that is the smallest of the log, else 0"),
            ),
            "query_item": Field(
                "query_item_id",
                "Where the query item, the one that the user looked at, is found.",
                Values("query_item_id, query_id, or first:<action>"),
            ),
            "missing_items": Field(
                "skip", "What happens to items of lists that the catalogue lacks.", Values("one of skip, error")
            ),
            "live_from": Field(
                "",
                "Attribute that tells when an item came; first_seen for its first event in the log.",
                Values("an attribute or first_seen; empty for always"),
            ),
            "live_until": Field("", "Attribute that tells when an item left.", Values("an attribute; empty for never")),
            "profile": Field(
                "mean",
                "What stands for a user: the mean of the liked items, or the last of them.",
                Values("one of mean, last"),
            ),
            "repeats": Field(
                False,
                "Whether buying again counts: users' earlier items stay candidates under leave_one_out and time_split.",
            ),
            "propensity_power": Field(
                -1.0,
                "Position p was seen with probability (1 / (1 + p)) to this power.",
                Values("0 to less than 10; -1 to measure it from items shown at several places, or else assume 1"),
            ),
            "propensity_clip": Field(10.0, "Largest inverse of that probability.", Values("at least 1")),
        }
    ),
)
