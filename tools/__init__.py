"""The programs of `siglip-jax`, one module each: a docstring, `define_flags(flag_values)` and `main(flags)`."""
