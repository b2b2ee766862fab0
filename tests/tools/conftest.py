"""What several tests of the programs use."""

import subprocess
import sys

import pytest

EMBED = """
import os, signal, sys
from eval.embeddings import sharded_writer as embedding_plan
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


@pytest.fixture
def embed_in_two(embed_script, free_port, process_environment):
    """A function of flags: `siglip-jax embed` in two processes, none of them killed."""

    def run(*flags: str) -> None:
        group = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", embed_script, str(sys.maxsize), *flags, *group, f"--process_id={index}"],
                env=process_environment(2),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=400)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    return run
