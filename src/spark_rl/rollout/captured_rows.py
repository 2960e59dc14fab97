"""Rows on shared prompts that play their steps from a CUDA graph.

A step of decoding is a thousand small operations, which on a GPU take longer to launch than to run. Recorded once, they
are launched as one. What is recorded may change neither shapes nor addresses: rows attend to all places that there is
room for, those not yet written hidden, and ids, positions and the place of the next token stand in tensors that stay.
A recording serves until rows are dropped or room is made.

Shape suffixes as in `running_rows`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spark_rl.rollout.running_rows import PromptOnceRows

logger = logging.getLogger(__name__)


class Capture:
    """Whether steps of a model are recorded: on a GPU, until one cannot be."""

    def __init__(self, model: Any) -> None:
        parameter = next(model.parameters())
        is_sharded = hasattr(parameter, "device_mesh")
        self.works = parameter.device.type == "cuda" and not is_sharded
        self.recorded = 0
        """How often."""

    def record(self, run: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """What `run` launches; None, now and from now on, if it does what cannot be recorded, such as to wait."""
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        noise = generator.clone_state()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()
        except RuntimeError as error:
            logger.warning("decoding goes on without a CUDA graph, which this model does not allow: %s", error)
            self.works = False
            generator.graphsafe_set_state(noise)  # the one that was in use takes itself for recorded still
            return None
        self.recorded += 1
        return graph


class CapturedRows(PromptOnceRows):
    """See `Rows`. Without a GPU they run as they are, which is how they are tested."""

    def __init__(self, model: Any, limit: int, capture: Capture) -> None:
        super().__init__(model, limit)
        self.capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids_R: Tensor | None = None

    def step(self, ids_R: Tensor) -> Tensor:
        if self.used == self.room:
            self._make_room()
            self._forget()
        self.used += 1
        if self._ids_R is None:
            self._ids_R, self._place = ids_R.clone(), torch.tensor([self.used - 1], device=ids_R.device)
            self.position_R = self.position_R.clone()
            if not self.capture.recorded:  # what happens at first only must not be recorded
                return self._play()
        self._ids_R.copy_(ids_R)
        if self._graph is None and self.capture.works:
            self._graph = self.capture.record(self._play)
        if self._graph is None:
            return self._play()
        self._graph.replay()
        return self._logits_RV

    def select(self, keep: Tensor) -> None:
        self._forget()
        super().select(keep)

    def _forget(self) -> None:
        self._graph = self._ids_R = None

    def _play(self) -> Tensor:
        """One step, from tensors that stay to tensors that stay."""
        assert self._ids_R is not None
        self._logits_RV = self._run(self._ids_R)
        self.position_R += 1
        self._place += 1
        return self._logits_RV

    def _with(self, layer: int, *states: Tensor) -> list[Tensor]:
        """The rows' own keys and values [R, K, room, D], with those of a further token in its place."""
        return [x.index_copy_(2, self._place, new) for x, new in zip(self._own[layer], states, strict=True)]

    def _extent(self) -> tuple[int, int | Tensor]:
        return self.room, self._place + 1
