"""Tables row by row. `table` is the interface, `text_table` (tsv, csv, jsonl) and `parquet_table` are the formats,
`open_table` chooses by the suffix.
"""
