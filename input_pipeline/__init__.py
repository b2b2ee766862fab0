"""From a shop's rows to batches. No JAX is imported here, but by Grain in `loader`.

`catalogue` reads what shops have, `synthetic` makes a catalogue of its own, `building` turns into a dataset of
ArrayRecord files, with `duplicates` (what belongs together) and `audit` (what to look at before training). `dataset`
reads it back, `augment` changes examples at random, `loader` makes batches of them.

`folder_or_zip` reads a catalogue's files and nothing outside them, `train_tokenizer` learns a tokenizer from titles,
`progress` shows how far long work has come.
"""
