"""Weights of other worlds, each read and written: big_vision .npz and Hugging Face folders."""
