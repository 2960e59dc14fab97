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
        self.device: torch.device = parameter.device
        self.works = self.device.type == "cuda" and not hasattr(parameter, "device_mesh")  # the latter is of shards
        self.rehearsals = self.recorded = 0
        """How often."""

    def rehearse(self, run: Callable[[], object]) -> bool:
        """Run one of the first two steps as it is, and see whether such can be recorded: the first one in peace, since
        it does what is never done again, and the second one watched, since a recording that fails leaves the allocator
        with what it cannot clean up. Returns whether the step has been run."""
        if self.rehearsals == 2:
            return False
        self.rehearsals += 1
        if self.rehearsals == 1:
            run()
            return True
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up(error)
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def record(self, run: Callable[[], object]) -> Callable[[], None] | None:
        """What plays what `run` launches; None, now and from now on, if that cannot be recorded."""
        if not self.works:
            return None
        with torch.cuda.device(self.device):  # it need not be the current one, which would record nothing
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            generator = torch.cuda.default_generators[self.device.index]
            noise = generator.clone_state()
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    run()
            except RuntimeError as error:
                self._give_up(error)
                torch.cuda.set_stream(stream)
                generator.graphsafe_set_state(noise)  # the one that was in use takes itself for recorded still
                return None
        self.recorded += 1

        def play() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return play

    def _give_up(self, error: RuntimeError) -> None:
        logger.warning("decoding goes on without a CUDA graph, which this model does not allow: %s", error)
        self.works = False


class CapturedRows(PromptOnceRows):
    """See `Rows`. Without a GPU they run as they are, which is how they are tested."""

    def __init__(self, model: Any, limit: int, capture: Capture) -> None:
        super().__init__(model, limit)
        self.capture = capture
        self._play_recorded: Callable[[], None] | None = None
        self._ids_R: Tensor | None = None

    def step(self, ids_R: Tensor) -> Tensor:
        if self.used == self.room:
            self._make_room()
            self._forget()
        self.used += 1
        if self._ids_R is None:
            self._ids_R, self._place = ids_R.clone(), torch.tensor([self.used - 1], device=ids_R.device)
            self.position_R = self.position_R.clone()
        else:
            self._ids_R.copy_(ids_R)
        if self._play_recorded is None and self.capture.works:
            if self.capture.rehearse(self._play):
                return self._logits_RV
            self._play_recorded = self.capture.record(self._play)
        (self._play_recorded or self._play)()
        return self._logits_RV

    def select(self, keep: Tensor) -> None:
        self._forget()
        super().select(keep)

    def _forget(self) -> None:
        self._play_recorded = self._ids_R = None

    def _play(self) -> None:
        """One step, from tensors that stay to tensors that stay."""
        assert self._ids_R is not None
        self._logits_RV = self._run(self._ids_R)
        self.position_R.add_(1).clamp_(max=self.last_R)
        self._place += 1

    def _with(self, layer: int, *states: Tensor) -> list[Tensor]:
        """The rows' own keys and values [R, K, room, D], with those of a further token in its place."""
        return [x.index_copy_(2, self._place, new) for x, new in zip(self._own[layer], states, strict=True)]

    def _extent(self) -> tuple[int, int | Tensor]:
        return self.room, self._place + 1
