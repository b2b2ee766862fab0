"""Memory, FLOPs and bytes sent by the sigmoid loss at full size, from its compiled program."""

import json

# Compiled only: what XLA would allocate, whatever the machine. A CPU multiplies float32 copies of bfloat16 operands,
# which no GPU and no TPU does; one plain product of the same embeddings tells how much that is.
COMPILED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.analysis.flops import cost
from siglip_jax.analysis.hlo import memory
from siglip_jax.losses import sigmoid_loss

def copies(rows, dtype, dim=768):
    side = jax.ShapeDtypeStruct((rows, dim), dtype)
    product = lambda x, y: jnp.einsum("nd,ne->de", x, y, preferred_element_type=jnp.float32)
    return memory(jax.jit(product).lower(side, side).compile())["temporary"]

def measure(devices, batch, dtype, dim=768):
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    rows, scalar = (
        jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))
        for shape, kind, spec in (((batch, dim), dtype, P("data")), ((1,), "float32", P()))
    )
    loss = lambda *a: sigmoid_loss(*a, mesh=mesh, communication="ring")
    both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    found = cost(both, rows, rows, scalar, scalar)
    return {
        "bytes": memory(jax.jit(both).lower(rows, rows, scalar, scalar).compile()),
        "copies": copies(batch // devices, dtype),
        "flops": found.flops / (batch * batch * dim),
        "flops of the loss": cost(loss, rows, rows, scalar, scalar).flops / (batch * batch * dim),
        "sent": found.sent.get("ppermute", 0) / (batch * dim),
    }

print(json.dumps([measure(int(devices), int(batch), dtype) for devices, batch, dtype in map(str.split, sys.argv[1:])]))
"""

# MiB per device at d = 768: arguments, results and temporary memory together, without the CPU's copies; temporary.
CEILINGS = {
    "1 65536 float32": (800, 30),
    "8 65536 float32": (192, 96),
    "64 65536 float32": (32, 20),
    "1 65536 bfloat16": (640, 256),
    "8 65536 bfloat16": (150, 100),
    "64 65536 bfloat16": (26, 20),
}


def test_memory_flops_and_bytes_at_full_size(python):
    """One matrix of logits of 65,536 rows would be 16 GiB."""
    cases = [*CEILINGS, "8 8192 float32", "8 8192 bfloat16"]
    done = python(COMPILED, *cases, devices=64)
    assert done.returncode == 0, done.stderr
    found = dict(zip(cases, json.loads(done.stdout), strict=True))
    for case, ceilings in CEILINGS.items():
        rows, itemsize = 65_536 // int(case.split()[0]), 4 if "float32" in case else 2
        sizes, copies = found[case]["bytes"], found[case]["copies"]
        assert sizes["arguments"] // 2**10 == sizes["outputs"] // 2**10 == 2 * rows * 768 * itemsize // 2**10
        assert copies == (2 * rows * 768 * 4 if itemsize == 2 else 0)
        assert (sum(sizes.values()) - copies) / 2**20 < ceilings[0], (case, sizes)
        assert (sizes["temporary"] - copies) / 2**20 < ceilings[1], (case, sizes)
    for dtype in ("float32", "bfloat16"):  # 1,024 rows a device, whatever the devices
        many, few = (found[f"{case} {dtype}"]["bytes"]["temporary"] for case in ("64 65536", "8 8192"))
        assert many < few + 2**17
    for case, figures in found.items():
        assert figures["flops"] == 6
        assert figures["flops of the loss"] == 2
        # Texts and their float32 gradients, once round the ring; nothing where there is one device.
        bytes_of_element = 8 if "float32" in case else 6
        assert figures["sent"] == (0 if case.startswith("1 ") else bytes_of_element), figures
