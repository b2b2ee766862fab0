"""The two towers of SigLIP, in Flax Linen with big_vision's parameter names."""
