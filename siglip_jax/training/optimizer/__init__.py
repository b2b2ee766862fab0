"""How parameters change in a step: AdamW with a cosine (`adamw`), rates by tower and layer (`rates`), parameters that
stay as they are (`freezing`), and the running mean of all of them (`ema`)."""
