"""Files of models, each format read and written.

`formats` is the table of them and where to add one; `stored_model` is what each is read to and written from. `native`,
`huggingface` (with `huggingface_names` and `processor`), `sentence_transformers`, `open_clip` and `big_vision` are one
format each. `name_table` walks tables of tensor names, `tensors` has safetensors files, and `position_embedding` fits a
grid of positions to another image size.
"""
