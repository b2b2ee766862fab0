"""The fields of the config, a table a subject, in the order of docs/reference/config.md. `field` says what a field is.

The tables lie together, below everything that reads them: every program reads a config, also those that load no
optimiser and no dataset, and `input_pipeline` and `eval` may not be imported from here. The head of each table names
its reader.
"""
