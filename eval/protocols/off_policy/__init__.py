"""What a ranker would have earned, from lists in whose order chance had a say: the lists, and the estimators."""
