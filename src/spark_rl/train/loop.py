"""The SPARK loop (paper, algorithm 1): one generation call and one optimizer step over all roles, again and again.

    select -> roll out -> score -> recycle -> update -> log

Questions give answers; graded answers are recycled into prompts that judge and correct them; these enter later steps
beside new questions and train the same weights with the same loss. Nothing here knows a role's prompts or a verifier.
The steps of a warm start come first, and differ in what they train on and by what loss (`warm_start.py`).

Everything random is addressed by (seed, step, task, sample, position), and `State` with the optimizer is all there is
to save: a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import gather_object, set_seed

from spark_rl.config import Config
from spark_rl.data import Data, load_data
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.models.processor import load_image_processor
from spark_rl.prompts import ChatRenderer
from spark_rl.prompts.build import prompts_as_json
from spark_rl.rollout.generate import Sampling, roll_out, training_sampling
from spark_rl.rollout.scoring import RuleScorer, Scorer
from spark_rl.rollout.transformers_engine import TransformersEngine, end_tokens
from spark_rl.train.card import model_card
from spark_rl.train.checkpoint import CannotWrite, step_name
from spark_rl.train.estimate import bytes_needed
from spark_rl.train.health import Collapsed, Health
from spark_rl.train.hub import check_hub_id, push
from spark_rl.train.metrics import Metrics, role_metrics, warnings
from spark_rl.train.model import max_prompt_tokens, mixed_precision, save_model
from spark_rl.train.preflight import check_processes, check_prompts, trained_prompts
from spark_rl.train.records import rollout_record
from spark_rl.train.saver import Saver
from spark_rl.train.selection import Selection
from spark_rl.train.self_reward import SelfRewardScorer, Switch
from spark_rl.train.summary import outcome
from spark_rl.train.telemetry import Display
from spark_rl.train.trackers import Trackers
from spark_rl.train.unread import Unread
from spark_rl.train.update import Updater, largest_weight
from spark_rl.train.validation import HeldOut, rewards_beside, score_of
from spark_rl.train.warm_start import WarmStart, nothing_learnt
from spark_rl.types import Group, Role, Task
from spark_rl.verify import SELF, VerifierHangs, VerifierPool

_PATIENCE = 3
"""Steps without signal before a role is warned about."""
T = TypeVar("T")


@dataclass(slots=True)
class State:
    """What a checkpoint holds beside weights, optimizer, and what its other parts keep."""

    step: int = 0
    wall_seconds: float = 0.0
    best_step: int | None = None
    best_score: float | None = None
    learnt: int = 0
    """Responses that the warm start has trained on."""
    after_warm_start: dict[str, Any] | None = None
    """Held-out metrics at its end."""


class Trainer:
    """Trains one model as policy, judge and reflector.

    >>> trainer = Trainer(load_config(Path("recipes/quickstart.yaml")))  # doctest: +SKIP
    >>> trainer.run()  # doctest: +SKIP

    Args:
        resume: go on from the run directory's newest checkpoint.
        allow_changes: go on even if settings that change results are not those of the saved run.

    Raises:
        ValueError: the config, the data, the model or the run directory is unusable; the sentence says what to change.
    """

    def __init__(
        self,
        config: Config,
        *,
        data: Data | None = None,
        resume: bool = False,
        allow_changes: bool = False,
        display: Display | None = None,
    ) -> None:
        check_hub_id(config)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.data = data or load_data(config)
        self.config = config = self.data.settled(config)
        self.tokenizer = load_tokenizer(config.model)
        self.images = load_image_processor(config.model, self.tokenizer)
        renderer = partial(ChatRenderer, self.tokenizer, config.model.chat_template_kwargs, self.images)
        self.first_renderer = renderer(self.data.prompts)
        """Makes the prompts of a warm start's rollouts, and of those that give held-out items."""
        check_prompts(config, self.data, self.first_renderer)
        self.prompts = trained_prompts(config, self.data.prompts)
        self.renderer = renderer(self.prompts)
        """Makes the prompts that are trained on and evaluated."""
        model = load_model(config.model)  # before anything is written: it may not exist
        self.switch = Switch(config.self_reward)
        longest, ends = max_prompt_tokens(config, model), end_tokens(model, self.tokenizer)
        self.selection = Selection(config, self.data.train, self.first_renderer, longest, self._asks_unverified)
        self.selection.require_one()
        self.warm_start = WarmStart(config, self.data.warm_start, self.renderer, longest, ends)

        timeout = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        # towers have layers after the one whose states are read
        has_idle_parameters = self.images is not None and not config.model.freeze_vision
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # said aloud, or several processes on CPUs are not joined
            mixed_precision=mixed_precision(config.model),
            kwargs_handlers=[timeout, DistributedDataParallelKwargs(find_unused_parameters=has_idle_parameters)],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        check_processes(config, self.world)
        self._same_data_everywhere()
        set_seed(config.train.seed)
        self.display = display or Display(
            config.num_steps, enabled=self.accelerator.is_main_process, warm_steps=config.warm_start.steps
        )
        self.saver = Saver(config, self.data, self.accelerator, self.display)
        self.run_directory = self.saver.directory
        found = self.saver.open(bytes_needed(model, config), resume, allow_changes)
        self.trackers = Trackers(
            config, self.run_directory.root, resume, self.display.warn, enabled=self.accelerator.is_main_process
        )

        self.updater = Updater(
            model, config, self.accelerator, self.tokenizer.pad_token_id, self.display.warn, self.images
        )
        self.model = self.updater.model
        self.engine = TransformersEngine(
            self.model,
            self.tokenizer,
            images=self.images,
            max_batch_tokens=config.rollout.max_batch_tokens,
            shares=config.train.shared_prefix != "plain",
        )
        self.verifiers = VerifierPool.of(config.verify)
        right_at, wrong_at = config.recycle.right_at, config.recycle.wrong_at
        grader = partial(RuleScorer, self.verifiers, right_at=right_at, wrong_at=wrong_at, prompts=self.prompts)
        rules = grader(truncated=config.loss.truncated)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.scorer: Scorer = SelfRewardScorer(config, rules, self.switch, self.renderer, context)
        self.grader = grader()
        """Grades held-out items, whatever training makes of truncated rollouts."""
        self.state = State()
        self.health = Health(config, self.display.warn, self.model.config.get_text_config().vocab_size)
        self.unread = Unread(self.prompts, self.verifiers, right_at)
        self.held_out = HeldOut(
            config,
            self.data,
            self._ask_held_out,
            self.selection.fits,
            self.display.warn,
            partial(self._ask_held_out, renderer=self.first_renderer),
            None if config.warm_start.steps else self.unread.sentences,
        )
        self._recent: deque[Metrics] = deque(maxlen=_PATIENCE)
        self._warned: set[str] = set()
        self._stop = False
        if found is not None:
            self._load(found)
            self.display.say(f"resumed after step {found}")

    def _same_data_everywhere(self) -> None:
        """Ranks select the same tasks, each for itself: a gold check that timed out on one of them would part them."""
        mine = (self.data.report, prompts_as_json(self.data.prompts))
        if self.world > 1 and any(theirs != mine for theirs in gather_object([mine])):
            raise RuntimeError("the processes have read different data; see that all of them see the same files")

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any] | None:
        """Train to the last step.

        Returns the summary, or None if a signal, a full disk, a verifier that hangs or a collapse stopped the run. It
        can be resumed, from the last good checkpoint.
        """
        with self.trackers.running(self.state.step), self.display, self.verifiers, self._signals():
            try:
                return self._train()
            except (CannotWrite, VerifierHangs) as error:
                self.display.warn(f"stopped in step {self.state.step}: {error}; mend that and go on with --resume")
            except Collapsed as error:
                self.display.warn(
                    f"stopped, the model is destroyed: {error}; {self.health.way_back(self.run_directory)}"
                )
            finally:
                self.run_directory.unlock()
            return None

    def _train(self) -> dict[str, Any] | None:
        self.health.begin(largest_weight(self.model))
        before = self._before()
        if self.state.step == 0:
            self._track_held_out(before, 0)
            self._set_switch(before)
        while self.state.step < self.config.num_steps and not self._has_learnt_nothing() and not self._is_stopped():
            self.step()
            is_best = self.state.best_step == self.state.step
            if is_best or _is_due(self.config.checkpoint.every, self.state.step):
                self._save()
        if self.state.step not in self.saver.checkpoints():
            self._save()
        if self._has_learnt_nothing():
            self.display.warn(nothing_learnt(self.run_directory.read_rows("metrics.jsonl")))
            return None
        if self.state.step < self.config.num_steps:
            self.display.warn(f"stopped after step {self.state.step}; go on with --resume")
            return None
        return self._finish(before)

    def _has_learnt_nothing(self) -> bool:
        """Whether a warm start is over and had nothing to learn from, so that RL has nothing to begin with."""
        return self.state.step == self.config.warm_start.steps > 0 == self.state.learnt

    def _asks_unverified(self) -> bool:
        """Whether the step that is next asks questions that only the model's own verdicts reward."""
        return self.switch.is_on and not self.config.is_warm_start(self.state.step + 1)

    def _is_stopped(self) -> bool:
        """Whether any rank was told to stop: all of them must leave the loop at the same step."""
        return self._stop if self.world == 1 else any(gather_object([self._stop]))

    def step(self) -> Metrics:
        """One step: select, roll out, score, recycle, update, validate if it is due, log."""
        clock, step = _Clock(), self.state.step + 1
        is_warm = self.config.is_warm_start(step)
        if 0 < self.config.warm_start.steps == self.state.step:
            self._begin_rl()
        groups, trained, counts = self._rolled_out(step, clock)
        with clock("recycle"):
            counts += self.selection.recycle(groups, step)
        seen = role_metrics([g for g in groups if g.task.verifier != SELF], self.config.recycle.right_at)
        seen |= self.health.see_rollouts(groups, seen, step)
        losses = self._imitated(groups, step, clock) if is_warm else self._updated(trained, clock)
        self.engine.shares &= self.updater.shares
        self.health.see_update(losses, step)
        watched = {} if is_warm else self.switch.watch(groups)
        self.state.step = step
        with clock("validate"):
            validated = self._validate_if_due()
        with clock("log"), self.saver.together():
            if self.accelerator.is_main_process:
                self.run_directory.write_rollouts(step, map(rollout_record, groups))
        metrics = {**seen, **self._metrics(groups, losses, counts, clock), **watched, **validated}
        self.state.wall_seconds += metrics["time/step"]
        with self.saver.together():
            if self.accelerator.is_main_process:
                self.run_directory.append_metrics({"step": step, **metrics})
        if self.accelerator.is_main_process:
            self.trackers.log(metrics, step)
            self.trackers.log_samples(groups, step)
        self.display.step(step, metrics)
        if not is_warm:
            with self.saver.together():
                if self.accelerator.is_main_process:
                    self._warn(metrics, groups)
        self.health.see_patience(step)
        return metrics

    # ------------------------------------------------------------------------------------------------ its stages

    def _begin_rl(self) -> None:
        """Leave the warm start behind, whose loss and prompts were others."""
        self.updater.begin_anew()
        self.health.begin_anew()

    def _rolled_out(self, step: int, clock: _Clock) -> tuple[list[Group], list[Group], Counter[str]]:
        """A step's groups, those of them that RL trains on, and what was passed over or dropped, by reason."""
        is_warm = self.config.is_warm_start(step)
        if is_warm and not self.config.warm_start.from_rollouts:
            return [], [], Counter()
        self.selection.renderer = self.first_renderer if is_warm else self.renderer
        tasks, counts = self.selection.select(step)
        groups = trained = self._ask(tasks, step, clock)
        for _ in range(0 if is_warm else self.config.rollout.refill_rounds):
            live, dead = _split(trained)
            tasks, passed = self.selection.replace(dead, step) if dead else ([], Counter[str]())
            counts += passed
            if not tasks:
                break
            fresh = self._ask(tasks, step, clock)
            groups, trained = [*groups, *fresh], [*live, *dead[len(fresh) :], *fresh]
        return groups, trained, counts

    def _updated(self, groups: Sequence[Group], clock: _Clock) -> Metrics:
        """An update of RL."""
        with clock("update"):
            return self.updater.update(groups, self.display.stage("updating"))

    def _imitated(self, made: Sequence[Group], step: int, clock: _Clock) -> Metrics:
        """A supervised update on what is right of a step's rollouts, and of its rows of data."""
        given = self.warm_start.given(step)
        with clock("score"):
            given = self._graded(given[self.rank :: self.world])
        groups, metrics = self.warm_start.learnt(made, given)
        with clock("update"):
            losses = self.updater.imitate(groups, self.display.stage("updating"))
        if groups:
            metrics["warm_start/nll"] = losses["loss"]
        elif not self.state.learnt:
            self.display.warn(f"warning, step {step}: nothing to learn from, since no rollout is right")
        self.state.learnt += sum(len(group.rollouts) for group in groups)
        return {**losses, **metrics}

    def _ask(self, tasks: Sequence[Task], step: int, clock: _Clock) -> list[Group]:
        """The tasks rolled out and scored: the groups of all ranks."""
        with clock("generate"):
            sampling, renderer = training_sampling(self.config), self.selection.renderer
            mine = self._roll_out(tasks, sampling, renderer, seed=self.config.train.seed, step=step)
        with clock("score"), self.accelerator.autocast():
            self.display.stage("scoring")
            with self.saver.together():
                self.scorer.score(mine, self.engine)
            return self._gather(mine)

    def _roll_out(
        self,
        tasks: Sequence[Task],
        sampling: Sampling,
        renderer: ChatRenderer,
        *,
        seed: int,
        step: int,
        name: str = "generating",
    ) -> list[Group]:
        """This rank's share of the tasks, rolled out."""
        progress = self.display.stage(name)
        with self.accelerator.autocast():
            return roll_out(
                tasks[self.rank :: self.world],
                self.engine,
                renderer,
                self.config,
                sampling,
                seed=seed,
                step=step,
                progress=progress,
            )

    def _graded(self, mine: list[Group]) -> list[Group]:
        """This rank's groups, graded by rules: the groups of all ranks."""
        with self.saver.together():
            self.grader.score(mine)
        return self._gather(mine)

    def _gather(self, mine: list[Group]) -> list[Group]:
        """The groups of all ranks; rank r holds every `world`-th from r."""
        if self.world == 1:
            return mine
        return _interleave(gather_object([mine]))

    # ------------------------------------------------------------------------------------------------ telemetry

    def _metrics(self, groups: list[Group], losses: Metrics, counts: Counter[str], clock: _Clock) -> Metrics:
        num_tokens, pool = sum(len(r.token_ids) for g in groups for r in g.rollouts), self.selection.pool
        return {
            **losses,
            **{name: float(count) for name, count in sorted(counts.items())},
            **{f"pool/{role}": float(pool.num_waiting(role)) for role in Role if role.is_recycled},
            "pool/age": pool.mean_age(self.state.step),
            "rollout_tokens": float(num_tokens),
            **{f"verify/{reason}": float(n) for reason, n in sorted(_reasons(groups).items())},
            **{f"time/{stage}": duration for stage, duration in clock.stages.items()},
            "time/step": clock.total(),
            "time/tokens_per_second": num_tokens / sum(clock.stages.get(s, 0) for s in ("generate", "score", "update")),
        }

    def _warn(self, metrics: Metrics, groups: Sequence[Group]) -> None:
        self._recent.append(metrics)
        first = self.config.warm_start.steps + 1
        if self.state.step == first and (first > 1 or not self.held_out.items):
            for sentence in self.unread.sentences(groups):
                self.display.warn(f"warning, step {first}: {sentence}")
        if len(self._recent) < _PATIENCE:
            return
        alternating = self.config.recycle.schedule == "alternating"

        def explain(role: Role) -> str:
            return self.unread.explain(role, list(map(rollout_record, groups)))

        for warning in warnings(self._recent, self.config.slots(), alternating, explain, self._warned):
            self.display.warn(f"warning, step {self.state.step}: {warning}")

    def _explain_last(self, role: Role) -> str:
        """Why replies of a role cannot be read, by those of the last step."""
        last = self.run_directory.read_rows(f"rollouts/{step_name(self.config.num_steps)}.jsonl")
        return self.unread.explain(role, last)

    # ------------------------------------------------------------------------------------------------ validation

    def _before(self) -> dict[str, Any]:
        started = time.monotonic()
        with self.saver.together():
            before = self.held_out.begin(self.run_directory, self.accelerator.is_main_process)
        self.state.wall_seconds += time.monotonic() - started
        return before

    def _ask_held_out(
        self, tasks: Sequence[Task], sampling: Sampling, name: str, renderer: ChatRenderer | None = None
    ) -> list[Group]:
        self.display.announce(name)
        return self._graded(self._roll_out(tasks, sampling, renderer or self.renderer, seed=0, step=0, name=name))

    def _validate_if_due(self) -> Metrics:
        """Validation metrics to log with the step; a new best is noted, and saved once the step is logged."""
        step, is_last = self.state.step, self.state.step == self.config.num_steps
        is_warm = step == self.config.warm_start.steps  # the last of them
        if not self.held_out.items or is_last or not (is_warm or _is_due(self.config.validation.every, step)):
            return {}
        if is_warm and self.held_out.complete():  # no score of fewer items compares with those to come
            self.state.best_score = self.state.best_step = None
        result = self.held_out.measure()
        shown = "  ".join(
            f"{name} {value:.1%}" if name.endswith("accuracy") else f"{name} {value:.3g}"
            for name, value in result.items()
            if name.endswith("accuracy") or name in rewards_beside(result, result).values()
        )
        self.display.say(f"held-out after step {step}:  {shown}")
        self._set_switch(result)
        if is_warm:
            self.state.after_warm_start = result
        score = score_of(result, self.config.validation.best)
        if self.state.best_score is None or score > self.state.best_score:
            self.state.best_score, self.state.best_step = score, step
        return _held_out_row(result)

    def _set_switch(self, result: dict[str, Any]) -> None:
        """Self-reward goes on or off by what a held-out evaluation says of the judge."""
        if said := self.switch.evaluated(result):
            self.display.warn(f"after step {self.state.step}, {said}")

    def _track_held_out(self, result: dict[str, Any], step: int) -> None:
        """Show the metrics before and after training to the trackers; `summary.json` holds them anyway."""
        if self.held_out.items:
            self.trackers.log(_held_out_row(result), step)

    # ------------------------------------------------------------------------------------------------ persistence

    def _save(self) -> None:
        """Checkpoint everything, atomically; remove what is no longer kept."""
        started = time.monotonic()
        self.display.stage("saving")
        self.health.state.last_checkpoint = self.state.step
        parts = {
            "state": asdict(self.state),
            "updater": self.updater.state_dict(),
            **self.selection.state_dict(),
            "self_reward": self.switch.state_dict(),
            "health": self.health.state_dict(),
            "held_out": self.held_out.state_dict(),
            "warm_start": self.warm_start.state_dict(),
        }
        kept = (self.state.best_step, self.health.state.good_checkpoint)
        self.saver.save(self.state.step, parts, self.model, self.updater.optimizer, kept)
        self.state.wall_seconds += time.monotonic() - started

    def _load(self, step: int) -> None:
        """Become what was saved after a step; its checkpoint is whole."""
        parts = self.saver.load(step, self.model, self.updater.optimizer)
        self.state = State(**parts["state"])
        self.updater.load_state_dict(parts["updater"])
        self.selection.load_state_dict(parts, self.data.images)
        self.switch.load_state_dict(parts["self_reward"])
        self.health.load_state_dict(parts["health"])
        self.held_out.load_state_dict(parts["held_out"])
        self.warm_start.load_state_dict(parts.get("warm_start", {}))

    def _finish(self, before: dict[str, Any]) -> dict[str, Any]:
        """Last validation, `final/` and `summary.json`."""
        started = time.monotonic()
        after, after_warm_start = self.held_out.measure(), self.state.after_warm_start
        score, best = score_of(after, self.config.validation.best), self.state.best_score
        if self.config.checkpoint.final == "best" and self.state.best_step and best is not None and score < best:
            if flaw := self.saver.flaw(self.state.best_step):
                self.display.warn(f"{flaw}; final/ holds the last weights instead of the best ones")
            else:
                seconds = self.state.wall_seconds
                self._load(self.state.best_step)
                self.state.wall_seconds = seconds
                after = self.held_out.measure()
        self._track_held_out(after, self.config.num_steps)
        steps = self.run_directory.read_rows("metrics.jsonl")
        summary = {
            **outcome(
                self.config,
                steps,
                self.held_out.items,
                self._explain_last,
                before=before,
                after_warm_start=after_warm_start,
                after=after,
            ),
            "monitor": sorted({task.example.source for task in self.data.monitor}),
            "steps": self.config.train.steps,
            "final_from_step": self.state.step,
            "wall_seconds": self.state.wall_seconds + time.monotonic() - started,
        }
        if self.accelerator.is_main_process:
            directory, final = self.run_directory, self.run_directory.root / "final"
            card = model_card(
                self.config,
                summary,
                environment=directory.read_json("environment.json"),
                data=directory.read_json("data.json"),
                last_step=steps[-1] if steps else None,
                resumes=directory.read_rows("resumes.jsonl"),
                takes_images=self.images is not None,
                prompts=self.prompts,
            )
            with directory.writing():
                save_model(self.model, self.tokenizer, final, card, self.config.model, self.prompts)
            directory.write_json("summary.json", summary)  # last: it says that the run is done
            push(final, self.config, self.display.say, self.display.warn)
        return summary

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step, save and leave; a second SIGINT interrupts at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True
            name = signal.Signals(number).name
            self.display.warn(f"{name}: finishing the step, then saving; one more Ctrl-C stops at once")

        former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def _held_out_row(result: dict[str, Any]) -> Metrics:
    """Held-out metrics under the names they have in `metrics.jsonl`."""
    return {f"validation/{name}": value for name, value in result.items() if isinstance(value, int | float)}


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
        self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - started

    def total(self) -> float:
        return time.monotonic() - self._started


def _split(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """The groups with signal, and those without."""
    return [g for g in groups if g.has_signal], [g for g in groups if not g.has_signal]


def _reasons(groups: Sequence[Group]) -> Counter[str]:
    return Counter(rollout.reason for group in groups for rollout in group.rollouts)


def _interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """The inverse of dealing out a list in turn."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
