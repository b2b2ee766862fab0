"""What surrounds the steps of a run: whose workdir it is, batches placed ahead of the step, progress, metrics, images
that had to be replaced, a profile, and an orderly stop."""
