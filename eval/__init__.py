"""From embeddings to a verdict, from the ground up.

`embeddings` keeps the vectors of items, `search` finds neighbours, `logs` reads what shoppers did, `metrics` measures a
ranking, `rankers` are what is ranked with, `protocols` say what is asked and of whom, `statistics` how sure a
difference is, `comparison` puts rankers side by side, and `report` shows the result.
"""
