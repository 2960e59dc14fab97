"""The SPARK loop (paper, algorithm 1): one generation call and one optimizer step over all roles, again and again.

    select -> roll out -> score -> recycle -> update -> log

Questions give answers; graded answers are recycled into prompts that judge and correct them; these enter later steps
beside new questions and train the same weights with the same loss. Nothing here knows a role's prompts or a verifier.

Everything random is addressed by (seed, step, task, sample, position), and `State` with the optimizer is all there is
to save: a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import copy
import json
import platform
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object, set_seed

from spark_rl.config import Config
from spark_rl.data import Questions, load_tasks
from spark_rl.prompts import ChatRenderer
from spark_rl.recycle import Bundle, Pool, recycle
from spark_rl.rollout.generate import Sampling, greedy_sampling, roll_out, training_sampling
from spark_rl.rollout.scoring import RuleScorer, Scorer
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.advantages import advantages
from spark_rl.train.batches import MicroBatch, denominators, micro_batches, to_tensors, train_groups
from spark_rl.train.card import model_card
from spark_rl.train.checkpoint import RunDirectory, write_atomically
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.train.loss import policy_loss
from spark_rl.train.metrics import Metrics, role_metrics, warnings
from spark_rl.train.model import load_model, load_tokenizer, mixed_precision, save_model
from spark_rl.train.telemetry import Display
from spark_rl.train.validation import ITEMS, score_of, validation_items, validation_metrics
from spark_rl.types import Group, Role, Task
from spark_rl.verify import VerifierPool

_PATIENCE = 3
"""Steps without signal before a role is warned about."""
T = TypeVar("T")


@dataclass(slots=True)
class State:
    """What a checkpoint holds beside weights, optimizer, schedule and pool."""

    step: int = 0
    cursor: int = 0
    """Questions drawn so far."""
    wall_seconds: float = 0.0
    best_step: int | None = None
    best_score: float = float("-inf")


class Trainer:
    """Trains one model as policy, judge and reflector.

    >>> trainer = Trainer(load_config(Path("recipes/quickstart.yaml")))  # doctest: +SKIP
    >>> trainer.run()  # doctest: +SKIP

    Raises:
        ValueError: the config, the data, the model or the run directory is unusable; the sentence says what to change.
    """

    def __init__(self, config: Config, *, resume: bool = False, display: Display | None = None) -> None:
        self.config = config
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.questions = Questions(load_tasks(config.data.train, config.data), config.train.seed)
        self.held_out = load_tasks(config.data.validation, config.data)
        self.monitored = load_tasks(config.data.monitor, config.data)
        self.tokenizer = load_tokenizer(config.model)
        self.renderer = ChatRenderer(self.tokenizer, config.model.chat_template_kwargs)
        model = load_model(config.model)

        timeout = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        self.accelerator = Accelerator(mixed_precision=mixed_precision(config.model), kwargs_handlers=[timeout])
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if config.rollout.groups_per_step % self.world:
            raise ValueError(
                f"rollout.groups_per_step is {config.rollout.groups_per_step}, which {self.world} processes cannot "
                "share evenly; make it a multiple of their number"
            )
        set_seed(config.train.seed)
        self.run_directory = RunDirectory(config.train.output)
        self.display = display or Display(config.train.steps, enabled=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            self._open(resume)
        self.accelerator.wait_for_everyone()

        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.train.learning_rate,
            betas=config.train.betas,
            weight_decay=config.train.weight_decay,
        )
        self.logprobs, self.optimizer = self.accelerator.prepare(
            GroupLogProbs(model, config.train.shared_prefix), optimizer
        )
        self.model = self.accelerator.unwrap_model(self.logprobs).model
        self.reference = self._reference() if config.loss.kl_coef > 0 else None
        self.schedule = _schedule(self.optimizer, config)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.engine = TransformersEngine(self.model, self.tokenizer, max_batch_tokens=config.rollout.max_batch_tokens)
        self.verifiers = VerifierPool(config.verify.workers, config.verify.cpu_seconds)
        self.scorer: Scorer = RuleScorer(self.verifiers, config.loss.truncated)
        self.pool = Pool(config.recycle.pool_size, config.recycle.max_age)
        self.state = State()
        self.items: list[Task] = []
        self._recent: deque[Metrics] = deque(maxlen=_PATIENCE)
        self._warned: set[str] = set()
        self._checked = False
        self._stop: signal.Signals | None = None
        if resume:
            self._load_newest()

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any] | None:
        """Train to the last step. Returns the summary, or None if a signal stopped the run (it can be resumed)."""
        with self.display, self.verifiers, self._signals():
            before = self._validation_start()
            while self.state.step < self.config.train.steps and not self._stop:
                self.step()
                is_best = self.state.best_step == self.state.step
                if is_best or _is_due(self.config.checkpoint.every, self.state.step):
                    self._save()
            if self.state.step not in self.run_directory.checkpoints():
                self._save()
            if self.state.step < self.config.train.steps:
                name = self._stop.name if self._stop else ""
                self.display.say(f"stopped by {name} after step {self.state.step}; go on with --resume", "yellow")
                return None
            return self._finish(before)

    def step(self) -> Metrics:
        """One step: select, roll out, score, recycle, update, validate if it is due, log."""
        clock, step = _Clock(), self.state.step + 1
        tasks, counts = self._select(step)
        with clock("generate"):
            mine = self._roll_out(tasks, training_sampling(self.config), seed=self.config.train.seed, step=step)
        with clock("score"):
            self.scorer.score(mine, self.engine)
            groups = self._gather(mine)
        with clock("recycle"):
            counts += self._recycle(groups, step)
        with clock("update"):
            losses = self._update(groups)
        self.state.step, self.state.cursor = step, self.questions.cursor
        with clock("validate"):
            held_out = self._validate_if_due()
        with clock("log"):
            if self.accelerator.is_main_process:
                self.run_directory.write_rollouts(step, map(_record, groups))
        metrics = {**self._metrics(groups, losses, counts, clock), **held_out}
        self.state.wall_seconds += metrics["time/step"]
        if self.accelerator.is_main_process:
            self.run_directory.append_metrics({"step": step, **metrics})
        self.display.step(step, metrics)
        self._warn(metrics)
        return metrics

    # ------------------------------------------------------------------------------------------------ its stages

    def _select(self, step: int) -> tuple[list[Task], Counter[str]]:
        """This step's tasks: recycled ones up to their shares, questions for the rest."""
        size, slots = self.config.rollout.groups_per_step, self.config.slots()
        recycled: list[Task] = []
        counts: Counter[str] = Counter()
        if self.config.recycle.schedule == "cobatched":
            recycled, counts = self.pool.take(slots, step)
        elif len(self.pool) >= size:
            of_recycled = sum(n for role, n in slots.items() if role.is_recycled) or 1
            recycled, counts = self.pool.take({role: n * size // of_recycled for role, n in slots.items()}, step)
            for role in Role:
                more, expired = self.pool.take({role: size - len(recycled)}, step)
                recycled, counts = recycled + more, counts + expired
        tasks = [*self._draw(size - len(recycled), counts), *recycled]
        seen: Counter[str] = Counter()
        for i, task in enumerate(tasks):  # a small data set may give a question twice: two groups, two ids
            seen[task.id] += 1
            if seen[task.id] > 1:
                tasks[i] = replace(task, id=f"{task.id}#{seen[task.id]}")
        return tasks, Counter({f"pool/{reason}": count for reason, count in counts.items()})

    def _draw(self, count: int, counts: Counter[str]) -> list[Task]:
        """The next questions whose prompts fit."""
        drawn: list[Task] = []
        skipped = 0
        while len(drawn) < count:
            (task,) = self.questions.draw(1)
            if self._fits(task):
                drawn.append(task)
                continue
            counts["questions_too_long"] += 1
            skipped += 1
            if skipped > len(self.questions.tasks):
                limit = self.config.data.max_prompt_tokens
                raise ValueError(f"every question is longer than data.max_prompt_tokens ({limit} tokens); raise it")
        return drawn

    def _fits(self, task: Task) -> bool:
        return len(self.renderer.encode(task.messages)) <= self.config.data.max_prompt_tokens

    def _roll_out(
        self, tasks: Sequence[Task], sampling: Sampling, *, seed: int, step: int, name: str = "generating"
    ) -> list[Group]:
        """This rank's share of the tasks, rolled out."""
        progress = self.display.stage(name)
        with self.accelerator.autocast():
            return roll_out(
                tasks[self.rank :: self.world],
                self.engine,
                self.renderer,
                self.config,
                sampling,
                seed=seed,
                step=step,
                progress=progress,
            )

    def _gather(self, mine: list[Group]) -> list[Group]:
        """The groups of all ranks; rank r holds every `world`-th from r."""
        if self.world == 1:
            return mine
        return _interleave(gather_object([mine]))

    def _recycle(self, groups: Sequence[Group], step: int) -> Counter[str]:
        if all(self.config.roles[role].share == 0 for role in Role if role.is_recycled):
            return Counter()
        made = recycle(groups, self.config.recycle, seed=self.config.train.seed, step=step)
        wanted: list[Bundle] = []
        for bundle in made.bundles:
            if self.config.roles[bundle[0].role].share == 0:
                made.counts["role_off"] += len(bundle)
            elif not all(self._fits(task) for task in bundle):
                made.counts["too_long"] += len(bundle)
            else:
                wanted.append(bundle)
        recycled = {f"recycle/{reason}": count for reason, count in made.counts.items()}
        pooled = {f"pool/{reason}": count for reason, count in self.pool.add(wanted).items()}
        return Counter({**recycled, **pooled})

    def _update(self, groups: Sequence[Group]) -> Metrics:
        """Train on this rank's groups of the step."""
        self.display.stage("updating")
        config = self.config
        total = denominators(groups, config)
        share = slice(self.rank, None, self.world)
        trainable = train_groups(groups[share], advantages(groups, config)[share], total, config)
        self._self_check(groups[share])
        pad_id, device = self.tokenizer.pad_token_id, self.accelerator.device
        packed = micro_batches(trainable, config.train.micro_batch_tokens)
        if self.world > 1:  # every rank makes the same number of forwards: under FSDP each is a collective
            idle = [replace(g, scales=[0.0] * len(g.scales)) for g in self._any_group(groups[share])]
            packed += [idle] * (max(gather_object([len(packed)])) - len(packed))
        batches = [to_tensors(micro, pad_id, device) for micro in packed]
        old = self._old_logps(batches) if config.train.epochs_per_step > 1 else [None] * len(batches)
        reference = [self._reference_logps(micro) for micro in batches]

        self.logprobs.train()
        sums = torch.zeros(4, device=device)
        grad_norm = 0.0
        for _ in range(config.train.epochs_per_step):
            for i, micro in enumerate(batches):
                with self._accumulating(last=i == len(batches) - 1):
                    logps_RT = self.logprobs(micro.batch, micro.temperature_R).logps_RT
                    before_RT, reference_RT = old[i], reference[i]
                    out = policy_loss(
                        logps_RT,
                        logps_RT.detach() if before_RT is None else before_RT,
                        micro.batch.completion_mask_RT,
                        micro.advantage_R,
                        micro.scale_R,
                        clip_low=config.loss.clip_low,
                        clip_high=config.loss.clip_high,
                        kl_coef=config.loss.kl_coef,
                        reference_logps_RT=reference_RT,
                    )
                    self.accelerator.backward(out.loss * self.world)  # data-parallel gradients are averaged
                    sums += torch.stack([out.loss.detach(), out.clipped, out.kl, out.num_tokens])
            if batches:
                norm = self.accelerator.clip_grad_norm_(self.logprobs.parameters(), config.train.max_grad_norm)
                grad_norm = float(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            learning_rate = self.schedule.get_last_lr()[0]
            self.schedule.step()
        loss, clipped, kl, num_tokens = self.accelerator.reduce(sums).tolist()
        return {
            "loss": loss / config.train.epochs_per_step,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "clip_rate": clipped / max(1, num_tokens),
            "trained_tokens": num_tokens / config.train.epochs_per_step,
            **({"kl": kl / max(1, num_tokens)} if self.reference is not None else {}),
        }

    def _any_group(self, groups: Sequence[Group]) -> list[Any]:
        """One group of one rollout, in training form, for a forward that must run but change nothing."""
        rollout = groups[0].rollouts[0]
        group = replace(groups[0], rollouts=[replace(rollout, reward=reward) for reward in (0.0, 1.0)])
        return train_groups([group], [[0.0, 0.0]], denominators([group], self.config), self.config)

    @contextmanager
    def _accumulating(self, last: bool) -> Iterator[None]:
        """Exchange gradients between ranks with the last micro-batch only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.logprobs):
                yield

    def _old_logps(self, batches: Sequence[MicroBatch]) -> list[Any]:
        with torch.no_grad():
            return [self.logprobs(micro.batch, micro.temperature_R).logps_RT for micro in batches]

    def _reference(self) -> GroupLogProbs:
        """The frozen starting model."""
        frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
        return GroupLogProbs(frozen, self.config.train.shared_prefix)

    def _reference_logps(self, micro: MicroBatch) -> torch.Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            logps_RT: torch.Tensor = self.reference(micro.batch, micro.temperature_R).logps_RT
        return logps_RT

    def _self_check(self, groups: Sequence[Group]) -> None:
        """Once: shared and plain log-probabilities of a few rollouts must agree, else the plain path is used."""
        if self._checked or not groups:
            return
        self._checked = True
        few = sorted(groups, key=lambda g: len(g.prompt_ids))[:2]
        batch = collate(
            [(g.prompt_ids, [r.token_ids for r in g.rollouts[:2]]) for g in few],
            self.tokenizer.pad_token_id,
            self.accelerator.device,
        )
        module = self.accelerator.unwrap_model(self.logprobs)
        with self.accelerator.autocast():
            problem = module.self_check(batch)
        if problem:
            self.display.say(f"The prompt is not shared in the update: {problem}. Using the plain forward.", "yellow")
            module.implementation = "plain"
            if self.reference is not None:
                self.reference.implementation = "plain"

    # ------------------------------------------------------------------------------------------------ telemetry

    def _metrics(self, groups: list[Group], losses: Metrics, counts: Counter[str], clock: _Clock) -> Metrics:
        num_tokens = sum(len(r.token_ids) for g in groups for r in g.rollouts)
        seconds = clock.total()
        return {
            **role_metrics(groups, self.config.recycle.right_at),
            **losses,
            **{name: float(count) for name, count in sorted(counts.items())},
            **{f"pool/{role}": float(self.pool.num_waiting(role)) for role in Role if role.is_recycled},
            "pool/age": self.pool.mean_age(self.state.step),
            "rollout_tokens": float(num_tokens),
            **{f"verify/{reason}": float(n) for reason, n in sorted(_reasons(groups).items())},
            **{f"time/{stage}": duration for stage, duration in clock.stages.items()},
            "time/step": seconds,
            "time/tokens_per_second": num_tokens / seconds,
        }

    def _warn(self, metrics: Metrics) -> None:
        self._recent.append(metrics)
        if len(self._recent) < _PATIENCE:
            return
        for warning in warnings(self._recent, {role: self.config.roles[role].share for role in Role}):
            topic = warning.split(" in the last")[0]
            if topic not in self._warned:
                self._warned.add(topic)
                self.display.say(f"warning, step {self.state.step}: {warning}", "bold yellow")

    # ------------------------------------------------------------------------------------------------ validation

    def _validation_start(self) -> dict[str, Any]:
        """The starting model's metrics on the held-out items, both made at step 0 and read back on a resume."""
        known: dict[str, Any] | None = self.run_directory.read_json("validation/before.json")
        if known is not None:
            self.items = ITEMS.validate_python(self.run_directory.read_json("validation/items.json"))
            return known
        if self.held_out:
            sampling = training_sampling(self.config)
            groups = self._roll_out(self.held_out, sampling, seed=0, step=0, name="making held-out items")
            self.scorer.score(groups, self.engine)
            self.items = validation_items(self._gather(groups), self.config.validation)
        before = self.validate()
        if self.accelerator.is_main_process:
            self.run_directory.write_json("validation/items.json", ITEMS.dump_python(self.items, mode="json"))
            self.run_directory.write_json("validation/before.json", before)
        return before

    def validate(self) -> dict[str, Any]:
        """Greedy metrics on the held-out items, with accuracies by role and source (the monitored sets included)."""
        tasks = [*self.items, *self.monitored]
        groups: list[Group] = []
        if tasks:
            mine = self._roll_out(tasks, greedy_sampling(self.config), seed=0, step=0, name="evaluating")
            self.scorer.score(mine, self.engine)
            groups = self._gather(mine)
        metrics, by_source = validation_metrics(groups, {task.id for task in self.items})
        return {**metrics, "n": len(self.items), "by_source": by_source}

    def _validate_if_due(self) -> Metrics:
        """Validation metrics to log with the step; a new best is noted, and saved once the step is logged."""
        step = self.state.step
        if not self.items or step == self.config.train.steps or not _is_due(self.config.validation.every, step):
            return {}
        result = self.validate()
        shown = "  ".join(f"{name} {value:.1%}" for name, value in result.items() if name.endswith("accuracy"))
        self.display.say(f"held-out after step {step}:  {shown}")
        score = score_of(result, self.config.validation.best)
        if score > self.state.best_score:
            self.state.best_score, self.state.best_step = score, step
        return {f"validation/{name}": value for name, value in result.items() if isinstance(value, int | float)}

    # ------------------------------------------------------------------------------------------------ persistence

    def _open(self, resume: bool) -> None:
        directory = self.run_directory
        directory.create(resume)
        saved = directory.root / "config.yaml"
        if resume and saved.exists():
            _refuse_changes(saved, self.config)
        if not directory.checkpoints():
            directory.cut_back(0)
        saved.write_text(self.config.dump(), encoding="utf-8")
        directory.write_json("environment.json", _environment(self.accelerator))

    def _save(self) -> None:
        """Checkpoint everything, atomically; remove what is no longer kept."""
        directory, accelerator, step = self.run_directory, self.accelerator, self.state.step
        folder = directory.partial_checkpoint(step, clear=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = {"state": asdict(self.state), "pool": self.pool.state_dict()}
            write_atomically(folder / "trainer.json", json.dumps(state))
            directory.complete_checkpoint(step)
            directory.prune(self.config.checkpoint.keep, self.state.best_step)
        accelerator.wait_for_everyone()

    def _load_newest(self) -> None:
        steps = self.run_directory.checkpoints()
        if steps:
            self._load(steps[-1])
            if self.accelerator.is_main_process:
                self.run_directory.cut_back(self.state.step)
            self.display.say(f"resumed after step {self.state.step}")

    def _load(self, step: int) -> None:
        folder = self.run_directory.checkpoint(step)
        self.accelerator.load_state(str(folder))
        saved = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        self.state = State(**saved["state"])
        self.pool.load_state_dict(saved["pool"])
        self.questions.cursor = self.state.cursor

    def _finish(self, before: dict[str, Any]) -> dict[str, Any]:
        """Last validation, `final/` and `summary.json`."""
        started = time.monotonic()
        after = self.validate()
        last_score = score_of(after, self.config.validation.best)
        best_step = self.state.best_step if self.config.checkpoint.final == "best" else None
        if best_step is not None and last_score < self.state.best_score:
            self._load(best_step)
            after = self.validate()
        summary = {
            "before": before,
            "after": after,
            "monitor": sorted({task.example.source for task in self.monitored}),
            "steps": self.config.train.steps,
            "final_from_step": self.state.step,
            "wall_seconds": self.state.wall_seconds + time.monotonic() - started,
        }
        if self.accelerator.is_main_process:
            self.run_directory.write_json("summary.json", summary)
            card = model_card(self.config, summary)
            save_model(self.model, self.tokenizer, self.run_directory.root / "final", card)
        return summary

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step, save and leave; a second SIGINT interrupts at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = signal.Signals(number)
            self.display.say(f"{self._stop.name}: finishing the step, then saving", "yellow")

        former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages[stage] = time.monotonic() - started

    def total(self) -> float:
        return time.monotonic() - self._started


def _schedule(optimizer: Any, config: Config) -> Any:
    """Learning rate over all optimizer steps of the run, recycled ones included."""
    total = config.train.steps * config.train.epochs_per_step
    warmup = round(config.train.warmup_ratio * total)
    match config.train.schedule:
        case "cosine":
            return transformers.get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, warmup, total, min_lr_rate=config.train.min_lr_ratio
            )
        case "linear":
            return transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
        case "constant":
            return transformers.get_constant_schedule_with_warmup(optimizer, warmup)


def _record(group: Group) -> dict[str, Any]:
    """A group as a row of `rollouts/`; also what `recycle` reads."""
    task = group.task
    return {
        "id": task.id,
        "role": task.role,
        "prompt": [dict(message) for message in task.messages],
        "answer": task.label,
        "verifier": task.verifier,
        "question_id": task.example.id,
        "source": task.example.source,
        "template": task.template,
        "depth": task.depth,
        "made_at_step": task.step,
        "parents": [response.id for response in task.shown],
        "rollouts": [
            {
                "id": r.id,
                "text": r.text,
                "reward": r.reward,
                "extracted": r.extracted,
                "reason": r.reason,
                "finish_reason": r.finish_reason,
                "num_tokens": len(r.token_ids),
            }
            for r in group.rollouts
        ],
    }


def _reasons(groups: Sequence[Group]) -> Counter[str]:
    return Counter(rollout.reason for group in groups for rollout in group.rollouts)


def _interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """The inverse of dealing out a list in turn."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    packages = ("spark-rl", "torch", "transformers", "accelerate", "tokenizers", "math-verify", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in packages},
    }


_MAY_CHANGE = ("checkpoint.", "validation.every", "train.threads", "verify.")


def _refuse_changes(saved: Path, config: Config) -> None:
    """A resumed run must be the run that was stopped."""
    import yaml

    old, new = (_flat(values) for values in (yaml.safe_load(saved.read_text()), yaml.safe_load(config.dump())))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    changed = [key for key in changed if not key.startswith(_MAY_CHANGE)]
    if changed:
        differences = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed)
        raise ValueError(f"--resume: the settings of this run have changed ({differences}); set them back")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
