"""Somebody else's image network as an encoder: what a shop already runs, as a row beside ours."""
