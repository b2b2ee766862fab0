"""The parts of `siglip-jax bench gpu`, one file a part, each a generator `rows(budget)` of what it measured.

`budget` is what a part is given and what parts share; `run_part` is the process that runs one.
"""
