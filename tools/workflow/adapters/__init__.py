"""Adapters over stored vectors: demo, the strength chosen after training, encoders to export with."""
