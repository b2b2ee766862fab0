"""The training step of transformers' SiglipModel in PyTorch, for `bench step`; nothing else needs either."""

from __future__ import annotations

import gc
import importlib.util
import tempfile
from typing import Any

from siglip_jax.model import Model
from siglip_jax.models.architecture import Architecture

CLIP_NORM, LEARNING_RATE, BETAS, WEIGHT_DECAY = 1.0, 1e-5, (0.9, 0.98), 0.1


def missing(architecture: Architecture) -> str:
    """Why there can be no such step here; "" where there can."""
    if absent := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(absent)} not installed"
    height, width = architecture.image_size
    return "" if height == width else f"it takes square pictures, these are {height} x {width}"


def limit_memory(size: float) -> str:
    """Has PyTorch run out of memory beyond `size` bytes; why it cannot, or ""."""
    import torch

    if not torch.cuda.is_available():
        return "only a GPU says where its memory ends"
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
    return ""


class TransformersStep:
    """SiglipModel with a model's weights, its loss over the batch under torch.compile, and AdamW.

    float32 parameters; with dtype "bfloat16" under autocast, which is what its users run: logits too are bfloat16 then.

    Args:
      model: the start; written as a Hugging Face folder and read from there.
      dtype: of products, "float32" or "bfloat16".
      checkpointed: layers make their activations again in the backward pass.
    """

    def __init__(self, model: Model, *, dtype: str, checkpointed: bool):
        import torch
        import transformers

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision("high")  # as JAX does on a GPU
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder, format="huggingface")
            network = transformers.SiglipModel.from_pretrained(folder, attn_implementation="sdpa")
        self._network = network.to(self._device, torch.float32).train()
        if checkpointed:
            network.gradient_checkpointing_enable()
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=LEARNING_RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=self._device == "cuda",
        )
        self._loss = torch.compile(self._loss_of, dynamic=False)
        self._placed: tuple[Any, Any, Any] = (None, None, None)
        self.title = f"transformers {transformers.__version__}, torch {torch.__version__} ({self._device})"

    def _loss_of(self, images: Any, ids: Any) -> Any:
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._network(input_ids=ids, pixel_values=pixels, return_loss=True).loss

    def run(self, batch: dict[str, Any]) -> float:
        """One step more; its loss."""
        torch = self._torch
        if self._placed[0] is not batch:
            placed = (torch.from_numpy(batch[key]).to(self._device) for key in ("image", "text"))
            self._placed = (batch, *placed)
        _, images, ids = self._placed
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
            loss = self._loss(images, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), CLIP_NORM)
        self._optimizer.step()
        return loss.item()  # waits for the device

    def fits(self, batch: dict[str, Any]) -> bool:
        """Whether a step of this batch runs."""
        torch = self._torch
        torch.compiler.reset()  # or it would give up compiling after a few sizes
        try:
            self.run(batch)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            self._placed = (None, None, None)
            self._optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        return True

    def peak_gib(self) -> str:
        """What PyTorch had allocated at most, where it tells."""
        torch = self._torch
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if self._device == "cuda" else "-"
