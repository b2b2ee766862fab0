"""The server of `siglip-jax serve`: `app` has its addresses, `served` what they answer from, `page` what people see."""
