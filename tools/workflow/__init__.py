"""The steps that programs share: each joins the data, the library and the evaluation for one part of the thread."""
