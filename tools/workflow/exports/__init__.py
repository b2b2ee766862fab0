"""What leaves the library: models, with the questions that each is asked before it is kept."""
