"""What a compiled training step costs: FLOPs, bytes between devices, memory, and the share of the hardware it uses.

`flops` counts over a jaxpr, `hlo` and `collectives` read the compiled program, `hardware` has the published figures of
chips, `mfu` divides the one by the other.
"""
