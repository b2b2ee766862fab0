"""Vectors of items on disk and in memory: the store (`store`; its shards, `store_shards`; how one is written shard by
shard, `sharded_writer`, and updated, `stored_rows`; what its rows are of a split, `entries`, and its shards made of,
`store_work`), files that somebody brings (`embedding_files`), both left on the disk (`stored_vectors`, by way of
`mapped_files`), smaller vectors (`reduction`), cosines (`vectors`), other people's image networks (`encoders`), and
stores for others (`dumps`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
