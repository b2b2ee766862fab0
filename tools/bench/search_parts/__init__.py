"""What `siglip-jax bench search` runs: `made_vectors` makes items and queries, `run_row` is the process of one row,
`our_rows` and `peer_rows` build and ask, `picture` draws."""
