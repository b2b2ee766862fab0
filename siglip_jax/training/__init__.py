"""The training loop: an iterator of batches and a list of evaluators in, checkpoints and metrics out.

`config` has the fields, `loop` the run from its first step to its last, `step` the pure function under `jax.jit`.
`start` is what happens before the first step, `optimizer` how parameters change, `parallel` where arrays live, `run`
what surrounds the steps: workdir, prefetched batches, progress, metrics, stopping. `aot` compiles a step before there
is a run.
"""
