"""Adapters over stored vectors: the demo beside an encoder, the strength chosen after training, encoders to export with."""
