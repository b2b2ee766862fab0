"""The reader of compiled text, on a text written by hand and on a program compiled for eight devices."""

import json

import pytest

from siglip_jax.analysis.hlo import Collective, collectives, largest_array

TEXT = """HloModule ring, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[128,768])) -> (s32[], bf16[128,768]) {
  %y = bf16[128,768]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %cps = (bf16[128,768]{1,0:T(8,128)(2,1)}, bf16[128,768]{1,0}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=1
  %work = f32[128,128]{1,0} fusion(%y), kind=kOutput, calls=%inner
  %cps.1 = (bf16[128,768]{1,0}, bf16[128,768]{1,0}) collective-permute-start(%y), channel_id=2
  %cpd.1 = bf16[128,768]{1,0} collective-permute-done(%cps.1)
  %cpd = bf16[128,768]{1,0} collective-permute-done(%cps)
  ROOT %t = (s32[], bf16[128,768]) tuple(%i, %cpd)
}

ENTRY %main (x: bf16[128,768]) -> f32[] {
  %loop = (s32[], bf16[128,768]) while(%t0), condition=%cond, body=%body
  %gather = bf16[1024,768]{1,0} all-gather(%x), dimensions={0}
  ROOT %r = f32[] all-reduce(%s), to_apply=%add
}
"""


def test_a_text_by_hand():
    rows = 128 * 768 * 2
    assert collectives(TEXT) == [
        Collective("collective-permute", rows, in_loop=True, asynchronous=True, overlapped=True),
        Collective("collective-permute", rows, in_loop=True, asynchronous=True, overlapped=False),
        Collective("all-gather", 8 * rows, in_loop=False, asynchronous=False, overlapped=False),
        Collective("all-reduce", 4, in_loop=False, asynchronous=False, overlapped=False),
    ]


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[]", 4), ("pred[8]", 8), ("bf16[2,3]{1,0}", 12), ("(u8[10], s64[2], f8e4m3fn[17])", 17), ("token[]", 0)],
)
def test_bytes(shape, size):
    assert largest_array(shape) == size


PROGRAM = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.analysis.hlo import collectives, memory
from siglip_jax.losses import sigmoid_loss

mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
x = jax.ShapeDtypeStruct((64, 4), "float32", sharding=NamedSharding(mesh, P("data")))
loss = lambda x: sigmoid_loss(x, x, jnp.zeros(1), jnp.zeros(1), mesh=mesh, communication="ring")
compiled = jax.jit(jax.grad(loss)).lower(x).compile()
print(json.dumps([[dataclasses.asdict(c) for c in collectives(compiled.as_text())], memory(compiled)]))
"""


def test_a_program_for_eight_devices(python):
    done = python(PROGRAM, devices=8)
    assert done.returncode == 0, done.stderr
    found, memory = json.loads(done.stdout)
    rows = 8 * 4 * 4
    permutes = [c for c in found if c["kind"] == "collective-permute"]
    assert len(permutes) == 4  # texts and gradients, in the loop and outside it
    assert sum(c["in_loop"] for c in permutes) == 2
    assert all(c["bytes"] == rows for c in permutes)
    assert {c["kind"] for c in found} <= {"collective-permute", "all-reduce"}
    assert all(c["bytes"] <= 4 for c in found if c["kind"] == "all-reduce")
    assert memory["arguments"] == memory["outputs"] == rows
    assert memory["temporary"] > rows
