"""The training loop: an iterator of batches and a list of evaluators in, checkpoints and metrics out."""
