"""What `bench export` and `bench formats` share: exports of one model, and a process that runs each."""
