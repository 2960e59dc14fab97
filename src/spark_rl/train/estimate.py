"""What a run asks of a machine, from a few integers: pure arithmetic, no torch.

Weights, gradients and AdamW's two moments are float32, 16 bytes a parameter together, 4 a frozen one. A step then has
three phases, and its peak is what is always there plus the largest of them:

- generation: the key/value cache, and the logits of one position of all rows;
- update: gradients, the activations of one micro-batch, and one chunk of logits with what their softmax needs;
- optimizer: gradients, and on an accelerator a temporary of the size of the weights.

Units: bytes and tokens. `dtype_bytes` is that of the compute precision: 4 for float32, 2 for bfloat16, under which
the residual stream and the norms stay in float32. Images are counted in patches, the tokens of the vision tower; what
it makes of them are tokens of the prompt like others. `benchmarks/bench_memory.py` compares with what a step really
takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spark_rl.config import Config

Implementation = Literal["shared", "plain"]

WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
"""Bytes a parameter: float32 each, and two moments of AdamW."""
LOGITS_CHUNK = 2**26
"""Logits that the update holds at once (see `forward`)."""
RUNTIME_CPU, RUNTIME_GPU = 384 * 2**20, 2**30
"""The libraries themselves, beside all tensors: a CPU process after its imports, an accelerator's context."""


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The sizes of a vision tower that memory depends on."""

    layers: int
    hidden: int
    width: int
    """What the linear layers of one of its layers put out for a patch, in all."""
    is_frozen: bool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that memory depends on, and of its vision tower if it has one."""

    num_params: int
    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP that a token goes through; with experts, that of all it is sent to together."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    shares: bool = True
    """Whether the architecture lets a group's prompt be computed once (see `can_share`)."""
    num_frozen: int = 0
    """Parameters without gradient and moments."""
    vision: VisionShape | None = None

    @property
    def num_trained(self) -> int:
        return self.num_params - self.num_frozen


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass of the update computes."""

    tokens: int
    """Through the decoder's layers."""
    pairs: int
    """(query, key) pairs of attention, masked ones included."""
    copied: int
    """Tokens of prompts whose keys and values are copied for the rollouts that share them."""
    completion_tokens: int
    """Through the output head."""
    patches: int = 0
    """Through the vision tower."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    weights: int
    """With AdamW's moments."""
    reference: int
    generation: int
    update: int
    optimizer: int
    runtime: int

    @property
    def peak(self) -> int:
        """The largest phase on top of what is always there."""
        return self.weights + self.reference + self.runtime + max(self.generation, self.update, self.optimizer)


def split_micro_batch(
    max_tokens: int, fill: int, num_groups: int, num_rollouts: int, prompt: int, new: int
) -> tuple[int, int]:
    """Groups of a micro-batch and rollouts of each: as many groups as fit in `fill` tokens, or one, or a part of one
    that fits in `max_tokens`, at least a rollout."""
    tokens = prompt + num_rollouts * new
    if tokens <= max_tokens:
        return min(max(1, fill // tokens), num_groups), num_rollouts
    return 1, max(1, (max_tokens - prompt) // new)


def micro_batch(
    implementation: Implementation, groups: int, rollouts: int, prompt: int, new: int, patches: int = 0
) -> MicroBatch:
    """A micro-batch of `groups` x `rollouts`, prompts of `prompt` tokens and completions of `new` (see `forward`).

    `plain` repeats the prompt for every rollout, `shared` only its keys and values. Both see the `patches` of a
    prompt's images once.
    """
    rows, seen = groups * rollouts, groups * patches
    if implementation == "plain":
        return MicroBatch(rows * (prompt + new), rows * (prompt + new) ** 2, 0, rows * new, seen)
    tokens = groups * prompt + rows * new
    return MicroBatch(tokens, rows * new * (prompt + new), rows * (prompt + new), rows * new, seen)


def kv_bytes(shape: ModelShape, tokens: int, dtype_bytes: int) -> int:
    """A key and a value of every token in every layer."""
    return 2 * tokens * shape.layers * shape.kv_heads * shape.head_dim * dtype_bytes


def generation_bytes(shape: ModelShape, tokens: int, rows: int, dtype_bytes: int, patches: int = 0) -> int:
    """Cache of a chunk of `rows` with `tokens` in all, and the sampling of one position: logits and probabilities, both
    in float32 (see `TransformersEngine`). Before these, one layer of the vision tower."""
    sampling = rows * shape.vocab * (4 + 4 + (0 if dtype_bytes == 4 else dtype_bytes))
    return max(
        kv_bytes(shape, tokens, dtype_bytes) + sampling, vision_bytes(shape, patches, dtype_bytes, keeps_all=False)
    )


def activation_bytes(shape: ModelShape, load: MicroBatch, dtype_bytes: int, checkpointing: bool = False) -> int:
    """What the decoder's layers keep for the backward pass.

    Of a token in a layer, with h the hidden and i the MLP's width, q and k those of all query and key heads:
    normalised input and output of two norms (4 h); queries before and after their norm, rotated, attention's output
    (4 q); keys and values (2 k), beside those that are copied; gate, its activation, up, and their product (4 i).
    Attention keeps its mask as numbers, one a pair. With checkpointing a layer keeps its input only, and one layer at a
    time is computed again. Linear attention and convolutions are taken for attention; the former keeps up to three
    times as much where it runs without kernels of its own.
    """
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = load.tokens * (4 * 4 * shape.hidden + dtype_bytes * (4 * q + 2 * k + 4 * shape.intermediate))
    layer += dtype_bytes * load.pairs
    layer += 2 * load.copied * k * dtype_bytes
    if checkpointing:
        return shape.layers * load.tokens * shape.hidden * 4 + layer
    return shape.layers * layer


def vision_bytes(
    shape: ModelShape, patches: int, dtype_bytes: int, keeps_all: bool, checkpointing: bool = False
) -> int:
    """What the vision tower's layers keep of an image's patches: for the backward pass, or one layer at a time.

    A layer's input, and what each of its linear layers puts out twice: as such, and as what the next one takes in,
    normalised, attended to or activated.
    """
    tower = shape.vision
    if tower is None:
        return 0
    layer = patches * (4 * tower.hidden + 2 * dtype_bytes * tower.width)
    if not keeps_all:
        return layer
    return tower.layers * patches * tower.hidden * 4 + layer if checkpointing else tower.layers * layer


def logits_bytes(shape: ModelShape, completion_tokens: int) -> int:
    """Logits, their log-softmax and the gradients of both, in float32, of at most one chunk."""
    return 4 * 4 * min(completion_tokens * shape.vocab, max(LOGITS_CHUNK, shape.vocab))


def update_bytes(shape: ModelShape, load: MicroBatch, dtype_bytes: int, checkpointing: bool = False) -> int:
    """Gradients, activations and logits; in bfloat16 also a copy of the weights in it. A frozen vision tower keeps
    nothing for the backward pass: while it runs it is all there is."""
    copy = 0 if dtype_bytes == WEIGHT else dtype_bytes
    of_weights = (GRADIENT + copy) * shape.num_trained
    kept = activation_bytes(shape, load, dtype_bytes, checkpointing) + logits_bytes(shape, load.completion_tokens)
    is_trained = shape.vision is not None and not shape.vision.is_frozen
    seen = vision_bytes(shape, load.patches, dtype_bytes, is_trained, checkpointing)
    return of_weights + (kept + seen if is_trained else max(kept, seen))


def weight_bytes(shape: ModelShape) -> int:
    """Weights, and moments of those that are trained."""
    return WEIGHT * shape.num_params + MOMENTS * shape.num_trained


def optimizer_bytes(shape: ModelShape, on_accelerator: bool) -> int:
    """Gradients, and AdamW's temporaries: of all parameters at once on an accelerator, two of the largest on a CPU."""
    temporary = WEIGHT * shape.num_trained if on_accelerator else 2 * WEIGHT * shape.vocab * shape.hidden
    return GRADIENT * shape.num_trained + temporary


def bytes_needed(model: Any, config: Config) -> int:
    """What a run's checkpoints (weights and AdamW's two moments) and `final/` take on disk at their most."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    steps, every = config.num_steps, config.validation.every
    saved = -(-steps // (config.checkpoint.every or steps)) + (steps // every if every else 0)  # each may be the best
    saved += bool(config.warm_start.steps and config.data.validation)  # measured at its end
    at_once = max(2, config.checkpoint.keep) + bool(every) + 1  # the last that is good, and one while it is written
    return (weights + moments) * min(at_once, saved) + weights


def largest_model(memory: int, dtype_bytes: int, on_accelerator: bool, max_tokens: int = 4096) -> int:
    """Parameters of the largest decoder whose full fine-tune fits, one rollout of `max_tokens` in a micro-batch.

    Over decoders of the usual proportions (layers = hidden / 80, MLP 3 x hidden, 4 query heads a key head), with
    activation checkpointing, to two digits; 0 if not even the smallest fits.
    """
    largest = 0
    for hidden in range(128, 16_385, 64):
        layers = max(4, hidden // 80)
        shape = ModelShape(
            num_params=layers * int(11.5 * hidden**2) + 64_000 * hidden,
            layers=layers,
            hidden=hidden,
            intermediate=3 * hidden,
            heads=max(4, hidden // 128),
            kv_heads=max(1, hidden // 512),
            head_dim=128 if hidden >= 512 else hidden // 4,
            vocab=64_000,
        )
        load = micro_batch("plain", 1, 1, max_tokens // 2, max_tokens // 2)
        needed = Memory(
            weights=weight_bytes(shape),
            reference=0,
            generation=generation_bytes(shape, max_tokens, 1, dtype_bytes),
            update=update_bytes(shape, load, dtype_bytes, checkpointing=True),
            optimizer=optimizer_bytes(shape, on_accelerator),
            runtime=RUNTIME_GPU if on_accelerator else RUNTIME_CPU,
        )
        if needed.peak <= memory:
            largest = shape.num_params
    return int(float(f"{largest:.2g}"))


def readable(num_bytes: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
