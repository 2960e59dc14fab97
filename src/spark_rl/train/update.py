"""One update: graded groups to an optimizer step (or several), whatever the number of ranks and micro-batches.

Whole groups live on one rank, every rank's loss is divided by the whole step's denominators, and gradients are summed,
so one rank and many make the same step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from spark_rl.config import Config
from spark_rl.models.load import unwrap
from spark_rl.models.packed_row import Prefix
from spark_rl.models.prefixes import prompt_classes
from spark_rl.models.processor import ImageProcessor
from spark_rl.models.vision import Vision, freeze_vision
from spark_rl.progress import Report
from spark_rl.train.advantages import advantages
from spark_rl.train.batches import (
    MicroBatch,
    TrainGroup,
    denominators,
    fill_tokens,
    micro_batches,
    prefixes_of,
    supervised_groups,
    to_tensors,
    train_groups,
    with_prefixes,
)
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.train.health import Collapsed
from spark_rl.train.loss import LossOutput, likelihood_loss, policy_loss
from spark_rl.train.metrics import Metrics
from spark_rl.types import Group

_CHECKED_TOKENS = 256
"""Most tokens of each rollout in the self-check, which holds the logits of all of them."""
_MAX_SKIPPED = 5
"""Updates in a row without a finite gradient after which a run gives up."""


class Updater:
    """Holds what is optimised: the model, the optimizer, its schedule, and the frozen reference if there is one.

    Args:
        say: told in a sentence when something had to be done differently.
        images: prepares those of a vision-language model.
    """

    def __init__(
        self,
        model: Any,
        config: Config,
        accelerator: Accelerator,
        pad_id: int,
        say: Callable[[str], None],
        images: ImageProcessor | None = None,
    ) -> None:
        self.config, self.accelerator, self.pad_id, self.say = config, accelerator, pad_id, say
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.vision = Vision(model, images) if images else None
        if config.model.freeze_vision:
            freeze_vision(unwrap(model))
        self.reference = self._frozen(model) if config.loss.kl_coef > 0 else None
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.train.learning_rate,
            betas=config.train.betas,
            weight_decay=config.train.weight_decay,
        )
        self.logprobs, self.optimizer = accelerator.prepare(GroupLogProbs(model, config.train.shared_prefix), optimizer)
        self.model = accelerator.unwrap_model(self.logprobs).model
        self.schedule = _schedule(self.optimizer, config)
        self._skipped = 0
        self._checked: set[str] = set()
        """What the self-check has seen: text, images, prefixes."""

    @property
    def shares(self) -> bool:
        """Whether prompts are computed once: off once the self-check has found that this changes something."""
        module: GroupLogProbs = self.accelerator.unwrap_model(self.logprobs)
        return module.implementation == "shared"

    @property
    def _shares_prefixes(self) -> bool:
        module: GroupLogProbs = self.accelerator.unwrap_model(self.logprobs)
        return module.shares_prefixes

    def state_dict(self) -> dict[str, int]:
        """What there is to save beside the tensors of model and optimizer."""
        return {"updates": self.schedule.last_epoch, "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The inverse of `state_dict`. The config's schedule and optimizer settings hold from here on, whatever those
        were that the state was saved with."""
        train, schedule = self.config.train, self.schedule
        self._skipped = state["skipped"]
        schedule.last_epoch, schedule._step_count = state["updates"], state["updates"] + 1
        factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
        schedule._last_lr = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        for group, now in zip(self.optimizer.param_groups, schedule._last_lr, strict=True):
            group.update(lr=now, initial_lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay)

    def update(self, groups: Sequence[Group], progress: Report = lambda done, total: None) -> Metrics:
        """Train on the graded groups of all ranks; this one computes every `world`-th from its own on. `progress` is
        told of the micro-batches."""
        config, share = self.config, slice(self.rank, None, self.world)
        total = denominators(groups, config)
        trainable = train_groups(groups[share], advantages(groups, config)[share], total, config)
        return self._train(groups, trainable, config.train.epochs_per_step, progress)

    def imitate(self, groups: Sequence[Group], progress: Report = lambda done, total: None) -> Metrics:
        """Make all rollouts of these groups, those of all ranks, more likely, whatever their rewards: one optimizer
        step. The `loss` is their mean negative log-likelihood, nats a token."""
        trainable = supervised_groups(groups, self.config)[self.rank :: self.world]
        return self._train(groups, trainable, 1, progress, imitates=True)

    def begin_anew(self) -> None:
        """Forget the moments of a stage that is over: they are of gradients of another loss."""
        self.optimizer.state.clear()

    def _train(
        self,
        groups: Sequence[Group],
        trainable: Sequence[TrainGroup],
        epochs: int,
        progress: Report,
        imitates: bool = False,
    ) -> Metrics:
        """An optimizer step an epoch on this rank's share of the groups."""
        self._self_check(groups)
        batches, prefixes = self._batches(trainable, groups[:1])
        self.logprobs.train()
        old = self._old_logps(batches, prefixes) if epochs > 1 else [None] * len(batches)
        reference = self._reference_logps(batches, prefixes)

        sums = torch.zeros(4, device=self.accelerator.device)
        grad_norm, skipped = 0.0, 0
        for epoch in range(epochs):
            self._compute(prefixes, self.logprobs)
            for i, micro in enumerate(batches):
                progress(epoch * len(batches) + i, epochs * len(batches))
                with self._accumulating(last=i == len(batches) - 1):
                    logps_RT = self.logprobs(micro.batch, micro.temperature_R).logps_RT
                    out = self._loss(micro, logps_RT, old[i], reference[i], imitates)
                    self.accelerator.backward(out.loss * self.world)  # data-parallel gradients are averaged
                    sums += torch.stack([out.loss.detach(), out.clipped, out.kl, out.num_tokens])
            if batches:
                norm = self.accelerator.clip_grad_norm_(self.logprobs.parameters(), self.config.train.max_grad_norm)
                grad_norm = float(norm)
                if math.isfinite(grad_norm):
                    self.optimizer.step()
                else:
                    skipped += 1
                self.optimizer.zero_grad()
            else:
                self.optimizer.step()  # changes nothing, but torch wants one before the schedule's
            learning_rate = self.schedule.get_last_lr()[0]
            self.schedule.step()
        self._count_skipped(skipped)
        loss, clipped, kl, num_tokens = self.accelerator.reduce(sums).tolist()
        return {
            "loss": loss / epochs,
            **({"skipped_updates": skipped} if skipped else {"grad_norm": grad_norm}),
            "learning_rate": learning_rate,
            "clip_rate": clipped / max(1, num_tokens),
            "health/largest_weight": largest_weight(self.model),
            "trained_tokens": num_tokens / epochs,
            **({"kl": kl / max(1, num_tokens)} if self.reference is not None else {}),
        }

    def _loss(
        self, micro: MicroBatch, logps_RT: Tensor, old_RT: Tensor | None, reference_RT: Tensor | None, imitates: bool
    ) -> LossOutput:
        mask_RT, settings = micro.batch.completion_mask_RT, self.config.loss
        if imitates:
            return likelihood_loss(logps_RT, mask_RT, micro.scale_R)
        return policy_loss(
            logps_RT,
            logps_RT.detach() if old_RT is None else old_RT,
            mask_RT,
            micro.advantage_R,
            micro.scale_R,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_coef=settings.kl_coef,
            reference_logps_RT=reference_RT,
        )

    def _batches(
        self, trainable: Sequence[TrainGroup], any_group: Sequence[Group]
    ) -> tuple[list[MicroBatch], list[Prefix]]:
        """The micro-batches of a step, and the prefixes that more than one of them needs. All ranks have as many of the
        former, and prefixes if another one has, since under FSDP each forward is a collective: idle ones if need be."""
        device, max_tokens = self.accelerator.device, self.config.train.micro_batch_tokens
        if self._shares_prefixes:
            trainable = with_prefixes(trainable, self.vision)
        packed = micro_batches(trainable, max_tokens, fill_tokens(max_tokens, device.type))
        prefix_of = prefixes_of(packed)
        shared = [prefix for prefix in dict.fromkeys(prefix_of) if prefix and prefix_of.count(prefix) > 1]
        if self.world > 1 and any_group:
            (group,) = any_group
            images = group.task.example.images
            idle = TrainGroup(group.prompt_ids, [group.rollouts[0].token_ids], [0.0], [0.0], 1.0, images)
            sizes, have_shared = zip(*gather_object([(len(packed), bool(shared))]), strict=True)
            packed += [[idle]] * (max(sizes) - len(packed))
            prefix_of += [None] * (len(packed) - len(prefix_of))
            if any(have_shared) and not shared:
                shared = [Prefix(idle.prompt_ids[:1])]
        batches = [
            to_tensors(
                micro, self.pad_id, device, self.vision, self.world > 1, prefix, prefix not in prefix_of[i + 1 :]
            )
            for i, (micro, prefix) in enumerate(zip(packed, prefix_of, strict=True))
        ]
        return batches, shared

    def _compute(self, prefixes: Sequence[Prefix], logprobs: Any) -> None:
        """Compute keys and values of prefixes under a model as it is now, to gather gradients for them."""
        if not prefixes:
            return
        with torch.no_grad(), self.accelerator.autocast():
            states = logprobs([prefix.ids for prefix in prefixes])
        for prefix, of_prefix in zip(prefixes, states, strict=True):
            prefix.states = {
                layer: (keys.requires_grad_(), values.requires_grad_()) for layer, (keys, values) in of_prefix.items()
            }

    def _count_skipped(self, skipped: int) -> None:
        """Warn of updates that were left out; give up when it goes on, before good checkpoints are pruned."""
        self._skipped = self._skipped + skipped if skipped else 0
        if skipped:
            self.say("an update was left out: its gradient is not finite")
        if self._skipped >= _MAX_SKIPPED:
            raise Collapsed(f"{_MAX_SKIPPED} updates in a row had no finite gradient")

    @contextmanager
    def _accumulating(self, last: bool) -> Iterator[None]:
        """Exchange gradients between ranks with the last micro-batch only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.logprobs):
                yield

    def _old_logps(self, batches: Sequence[MicroBatch], prefixes: Sequence[Prefix]) -> list[Any]:
        self._compute(prefixes, self.logprobs)
        with torch.no_grad():
            return [self.logprobs(micro.batch, micro.temperature_R).logps_RT for micro in batches]

    def _frozen(self, model: Any) -> GroupLogProbs:
        """The starting model, for the KL penalty."""
        frozen = copy.deepcopy(model).to(self.accelerator.device).eval().requires_grad_(False)
        return GroupLogProbs(frozen, self.config.train.shared_prefix)

    def _reference_logps(self, batches: Sequence[MicroBatch], prefixes: Sequence[Prefix]) -> list[Any]:
        if self.reference is None:
            return [None] * len(batches)
        self._compute(prefixes, self.reference)
        with torch.no_grad(), self.accelerator.autocast():
            return [self.reference(micro.batch, micro.temperature_R).logps_RT for micro in batches]

    def _self_check(self, groups: Sequence[Group]) -> None:
        """Once, and once with images and with prefixes: shared and plain log-probabilities of a few rollouts must
        agree, else the plain path is used. Every rank looks at the same ones, so that all go the same way."""
        prompts = [group.prompt_ids for group in groups]
        before = self.vision.before_images(prompts) if self.vision else None
        length, alike = next(iter(prompt_classes(prompts, before)), (0, []))
        seen = {"text": True, "images": any(group.task.example.images for group in groups), "prefix": length > 0}
        kinds = {kind for kind, is_seen in seen.items() if is_seen}
        if not groups or kinds <= self._checked:
            return
        self._checked |= kinds
        by_length = sorted(groups, key=lambda g: (not g.task.example.images, len(g.prompt_ids)))
        few = {0: [by_length[0], by_length[-1]][: len(groups)]}
        if length and self._shares_prefixes:
            few[length] = [groups[alike[0]], groups[alike[-1]]]
        for prefix, checked in few.items():
            self._check(checked, Prefix(checked[0].prompt_ids[:prefix]) if prefix else None)

    def _check(self, groups: Sequence[Group], prefix: Prefix | None) -> None:
        """`_self_check` of these groups."""
        shown = [g.task.example.images for g in groups]
        images = self.vision.read([g.prompt_ids for g in groups], shown) if self.vision else None
        batch = collate(
            [(g.prompt_ids, [r.token_ids[:_CHECKED_TOKENS] for r in g.rollouts[:2]]) for g in groups],
            self.pad_id,
            self.accelerator.device,
            images,
            prefix,
        )
        module = self.accelerator.unwrap_model(self.logprobs)
        with self.accelerator.autocast():
            problem = module.self_check(batch)
            if problem and module.implementation == "shared":
                self.say(f"The prompt is not shared in the update: {problem}. Using the plain forward.")
                for each in (module, self.reference):
                    if each is not None:
                        each.implementation = "plain"
                problem = module.self_check(batch)
        if problem:
            raise ValueError(f"model.path: this model cannot be trained here, since {problem}")


def largest_weight(model: Any) -> float:
    """The largest absolute value among all weights; NaN if one of them is."""
    return float(torch.nn.utils.get_total_norm(model.parameters(), norm_type=math.inf))


def _schedule(optimizer: Any, config: Config) -> Any:
    """Learning rate over all optimizer steps of the run, recycled ones included; the first one is above 0. The steps of
    a warm start, of an optimizer step each, have their own; the schedule is that of RL."""
    total = config.train.steps * config.train.epochs_per_step
    warmup = round(config.train.warmup_ratio * total)
    floor, warm = config.train.min_lr_ratio, config.warm_start
    warmup_of_warm = round(config.train.warmup_ratio * warm.steps)

    def factor(done: int) -> float:
        if done < warm.steps:
            return min(1.0, (done + 1) / (warmup_of_warm + 1)) * warm.learning_rate / config.train.learning_rate
        done -= warm.steps
        if done < warmup:
            return (done + 1) / (warmup + 1)
        progress = min(1.0, (done - warmup) / max(1, total - warmup))
        match config.train.schedule:
            case "cosine":
                return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
            case "linear":
                return 1 - progress
            case "constant":
                return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
