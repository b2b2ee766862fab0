"""What several tests of the programs use."""

import pytest

EMBED = """
import os, signal, sys
from eval import embedding_plan
from siglip_jax.cli import main

last, write = int(sys.argv[1]), embedding_plan.EmbeddingPlan.write

def killed_after(self, number, *arguments, **options):
    write(self, number, *arguments, **options)
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)

embedding_plan.EmbeddingPlan.write = killed_after
sys.exit(main(["embed", *sys.argv[2:]]))
"""


@pytest.fixture(scope="session")
def embed_script() -> str:
    """A program: `siglip-jax embed` with its flags, killed once it has written the shard of the first argument."""
    return EMBED
