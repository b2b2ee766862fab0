"""An embedding store in the formats of others: Vertex AI Vector Search (`vertex`) and plain files (`plain`), with what
a dataset says of the items (`item_facts`). Shard by shard, written aside and moved into place whole (`aside`).
"""
