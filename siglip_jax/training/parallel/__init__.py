"""Where arrays live: the mesh and its rules (`sharding`), the same as a table for people (`sharding_table`), several
processes as one run (`distributed`), batches that do not fit at once (`microbatch`)."""
