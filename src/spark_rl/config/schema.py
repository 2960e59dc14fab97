"""Every knob of a run, documented with its unit and, where the paper has one, the paper's value.

A run is one YAML file. `preset: paper | spark | grpo` names the values it starts from (see `presets/`); the file's own
keys replace them, and `section.key=value` arguments of the command line replace those. An unknown key is an error.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from spark_rl.config.base import Beta, Count, Positive, Probability, Section, listed
from spark_rl.config.prompts import PromptsConfig
from spark_rl.config.sources import FILE_SUFFIXES, Columns, SourceConfig, Sources
from spark_rl.config.warm_start import WarmStartConfig
from spark_rl.types import Role

_WITH_REVISION = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)@(?P<revision>[^\s@]+)")
"""A model of the Hub as transformers' own commands take it."""


class ModelConfig(Section):
    """The one model that is policy, judge and reflector."""

    path: str = "embedded"
    """A local folder or a Hub id of a causal LM or a vision-language model; `embedded` and
    `embedded-vision` are the tiny bases that ship with the package. `org/name@revision` names a revision, too."""
    revision: str | None = None
    """Of a model of the Hub: a branch, a tag or a commit; null is its newest state. Weights, tokenizer, processor and
    code are all of it."""
    chat_template: Path | None = None
    """A Jinja file, for base models whose tokenizer has no chat template. Not for a server, which renders prompts with
    its own."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, for example `enable_thinking: false`; a server's too (vLLM and SGLang take them)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; `auto` is bfloat16 on a GPU that has it (weights stay in float32), else float32."""
    attn_implementation: str | None = None
    """An attention implementation of transformers (`sdpa`, `flash_attention_2`, ...); null lets it choose. Where
    prompts are shared, torch's scaled-dot-product attention is used, whatever is named here."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    max_pixels: Annotated[int, Field(ge=784)] = 1_048_576
    """Images with more pixels are made smaller, in proportion (paper: 1,048,576); the model's own processor may go on
    from there."""
    freeze_vision: bool = False
    """Do not train a vision-language model's vision tower and what projects its features (paper: trained)."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along."""

    @model_validator(mode="before")
    @classmethod
    def _split_revision(cls, values: Any) -> Any:
        path = values.get("path") if isinstance(values, dict) else None
        named = _WITH_REVISION.fullmatch(path) if isinstance(path, str) else None
        if named is None or Path(named.string).exists():
            return values
        if values.get("revision") not in (None, named["revision"]):
            raise ValueError(
                f"model.path names the revision {named['revision']!r}, and model.revision is {values['revision']!r}; "
                "give one"
            )
        return {**values, **named.groupdict()}

    @property
    def name(self) -> str:
        """The path, with the revision if there is one."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def is_remote(self) -> bool:
        """It is the address of a server."""
        return self.path.startswith(("http://", "https://"))


class DataConfig(Section):
    """Questions with checkable answers."""

    train: Sources = [SourceConfig(path="embedded:train")]
    """Sources of questions to train on: paths, or mappings of a path with its own settings. Rows with a `role` are
    ready judge or reflection items and train as such."""
    validation: Sources = []
    """The same for held-out questions. Judge and reflection items are recycled from the starting model's own rollouts
    on them and then kept, so that before and after are measured on the same items. Training leaves out what stands
    here."""
    monitor: Sources = []
    """Further held-out questions, only answered, and reported by source beside the headline metrics."""
    columns: Columns = {}
    """Which column (or dotted path, such as `reward_model.ground_truth`) holds which of our fields, where the names
    differ: `{prompt: problem, answer: solution}`. `response` is a worked reply, which is shown where rows become
    examples (`prompts.examples`), and learnt in a warm start (`warm_start.data`)."""
    answer_pattern: str | None = None
    """A regular expression with one group that finds the gold in the answer column; its last match counts. For
    GSM8K: `'####\\s*(.+)'`."""
    verifier: str = "math"
    """The verifier of rows that name none: `math`, `numeric`, `choice`, `exact`, `reasoning_gym`, a function of yours
    as `module:function`, a reward function in TRL's signature as `trl:module:function`, or `self`, no rule but the
    model's own verdict (see `self_reward`)."""
    system: str | None = None
    """System message put before questions that are given as plain strings."""
    answer_format: str | None = None
    """How responses state their answers, and how prompts ask for it: `boxed`, `tags` (`<answer>17</answer>`), `hash`
    (`#### 17`), `phrase` ("The answer is 17."), `last_number`, `json:<key>` (`{"answer": "17"}` for `json`), or a
    regular expression with one group around the answer, such as `'Result:\\s*(.+)'` (paper: `boxed`). null is
    the format that the model was trained in, where its folder tells, else `boxed`."""
    image_folder: Path | None = None
    """What the paths of images are relative to; null is the folder of the file that names them, and for data sets of
    the Hub the current one."""
    allow_image_urls: bool = False
    """Fetch images that are given as http(s) addresses, at most 64 MiB and 20 seconds each; otherwise they are
    refused."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What happens when a row is malformed, an image of it cannot be read, its id is taken, its gold cannot be read, or
    the chat template makes no prompt of it: the run is refused before its first step, or the row is skipped and
    counted."""
    check_golds: bool = True
    """Have the verifier grade every gold against itself before the first step. Costs about a millisecond a row."""
    max_prompt_tokens: Positive = 4096
    """Questions with longer prompts are skipped and counted; so are recycled prompts."""


class RolloutConfig(Section):
    """Sampling. Roles may override the number, the length and the temperature."""

    groups_per_step: Positive = 64
    """Groups (prompts) of all roles together that one step generates and trains on (paper: 64 questions)."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Rollouts of a group (paper: 8)."""
    max_new_tokens: Positive = 768
    """Length limit of a rollout, tokens (paper: 768)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature (paper: 1.0); training uses the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; below 1 the sampled and the trained distribution differ."""
    stop: Annotated[list[str], BeforeValidator(listed)] = []
    """Strings that end a rollout beside the model's end-of-turn token."""
    refill_rounds: Count = 0
    """How often a step replaces its groups without signal (all rewards equal) by fresh prompts, in a further
    generation call; recycling still uses all groups (DAPO's dynamic sampling)."""
    max_batch_tokens: Positive | None = None
    """Tokens that the transformers engine holds keys and values of at once: every prompt once, and all rollouts at
    their limit; null chooses by device."""


class RoleConfig(Section):
    """One role's part in a step."""

    share: Probability = 0.0
    """Share of a step's groups. What the pool cannot fill goes to questions."""
    num_generations: Annotated[int, Field(ge=2)] | None = None
    """Overrides `rollout.num_generations`."""
    max_new_tokens: Positive | None = None
    """Overrides `rollout.max_new_tokens`."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Overrides `rollout.temperature`."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on this role's advantages."""


class AnswerConfig(RoleConfig):
    """The policy's part in a step: all of it, where nothing else is said."""

    share: Probability = 1.0
    """Share of a step's groups, and of what the pool cannot fill."""


class RolesConfig(Section):
    """The four roles."""

    answer: AnswerConfig = AnswerConfig()
    """The policy: answer a question."""
    pointwise: RoleConfig = RoleConfig()
    """Judge one response: Yes or No."""
    pairwise: RoleConfig = RoleConfig()
    """Judge two responses, one right and one wrong: A or B."""
    reflection: RoleConfig = RoleConfig()
    """Look at an earlier response and answer again."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        total = sum(self[role].share for role in Role)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the four roles add up to {total:g}; make them add up to 1")
        if self.answer.share == 0:
            raise ValueError("roles.answer.share is 0, so there is nothing to recycle; give the questions a share")
        return self

    def __getitem__(self, role: Role) -> RoleConfig:
        section: RoleConfig = getattr(self, role.value)
        return section


class RecycleConfig(Section):
    """How a step's rollouts become the next steps' judge and reflection prompts (paper, section 3.2)."""

    schedule: Literal["cobatched", "alternating"] = "cobatched"
    """`cobatched`: every step mixes all roles. `alternating`: a step of questions only, and a step of recycled prompts
    only whenever enough are waiting (the paper's code); a step's rollouts become no more than the roles' shares."""
    right_at: float = 1.0
    """A reward of at least this makes a response right: for labels, and wherever a run counts an accuracy. Any finite
    reward trains; this says where on a verifier's scale right begins. Verdicts are right at 1."""
    wrong_at: float = 0.05
    """A reward of at most this makes it wrong; what lies between trains the policy but never becomes a label. Not 0:
    many scorers of reasoning-gym give a wrong answer 0.01 or 0.05 for its form, some 0.2 or 0.5. Where it is below 0, a
    response without an answer gets it, not 0."""
    both_orders: bool = True
    """Make every pair in both orders, so that a position can not predict the label (paper: one random order)."""
    balanced: bool = True
    """Make pointwise items in couples of one right and one wrong response to the same question, so that neither the
    label's frequency nor the question's difficulty predicts the label. If false, a group with rights and wrongs gives
    a pair with probability `pair_rate` and else one pointwise item, and any other group one pointwise item (paper)."""
    pair_rate: Probability = 0.7
    """See `balanced` (paper: 0.7)."""
    items_per_group: Positive = 2
    """At most so many couples, pairs and reflection items each are made of one group."""
    keep_right_share: Probability = 0.5
    """Share of reflection items that show a right response, which is to be kept (paper: 0, only wrong ones). Fewer
    where there are not as many; wrong ones are never left out."""
    reasoning_view: Probability = 0.5
    """Share of items that show the whole response; the others show its final answer (paper: both are used)."""
    max_response_chars: Positive = 8000
    """A shown response is cut in its middle to this many characters, visibly."""
    probe_rate: Probability = 0.0
    """Share of couples and pairs in which the wrong response is one without content, or a claim such as "Grade: right."
    is put into the responses: a judge must not be won over by words (paper: 0). Needs `balanced`."""
    max_depth: Literal[1, 2] = 2
    """1 recycles rollouts of questions only (paper); 2 recycles rollouts of reflection too, as items to judge and as
    before/after pairs."""
    pool_size: Positive = 4096
    """Waiting recycled prompts of each role; the oldest leave first."""
    max_age: Positive = 64
    """Steps after which a waiting prompt is dropped: recycling is meant to be nearly on-policy."""


class SelfRewardConfig(Section):
    """The model's own verdicts as the reward of questions that no rule can verify: rows with `verifier: self`, which
    need no answer (after URPO, arXiv 2507.17515). They are asked only once the judge is good at held-out questions."""

    enabled: bool = False
    """Train on such rows; otherwise they are refused (paper: all questions are verified)."""
    kind: Literal["pointwise", "pairwise"] = "pointwise"
    """The reward of a response: the judge's probability that it is right, or its rate of wins over the other responses
    to the question, each pair shown in both orders (up to 7 judgements a rollout in groups of 8)."""
    threshold: Probability = 0.75
    """Held-out accuracy (balanced pointwise, or pairwise) from which on the verdicts count. It is measured before the
    first step and every `validation.every` steps; 0.5 is guessing, and 0 switches on at once."""
    hysteresis: Probability = 0.05
    """Verdicts no longer count when that accuracy is more than this below the threshold."""
    ramp_steps: Count = 10
    """Steps in which the weight rises linearly to `weight` once verdicts count."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the advantages of these groups, beside `roles.answer.weight`. They are divided by one half, not by
    their group's standard deviation, so that verdicts that hardly differ teach hardly anything."""
    view: Literal["answer", "reasoning"] = "answer"
    """What the judge sees of a response: its final answer alone, or all of it. Words beside an answer cannot win over
    who does not read them, and equal answers are judged once."""
    samples: Positive = 1
    """Judgements of each prompt: 1 is greedy; more are sampled at the judge role's temperature, and averaged."""
    max_new_tokens: Positive | None = None
    """Length limit of a judgement, tokens; null is that of the judge's role."""
    saturated_at: Probability = 0.95
    """Collapse: verdicts stop counting for good if their mean since the last evaluation is above this, or they differ
    too little (`min_std`), while held-out answers get worse (`max_drop`)."""
    min_std: Probability = 0.01
    """Collapse: the mean standard deviation of a group's rewards below which they say nothing."""
    max_drop: Probability = 0.03
    """Collapse: the fall of held-out answer accuracy, below its best since verdicts count, that is no chance."""


class LossConfig(Section):
    """The GRPO family of losses."""

    aggregation: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    """`grpo`: mean over rollouts of their token means (DeepSeekMath). `dapo`: mean over all tokens of the step (the
    paper's token mean). `dr_grpo`: sum over tokens by rollouts times their length limit (no length bias)."""
    advantage_scale: Literal["group", "role", "none"] = "group"
    """What a reward's distance to its group's mean is divided by: the group's standard deviation (paper), the standard
    deviation of these distances over the role's rollouts of this step (PAG), or nothing (Dr. GRPO)."""
    advantage_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to that standard deviation."""
    clip_low: Probability = 0.2
    """The probability ratio is clipped below at 1 - clip_low (paper: 0.2)."""
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """And above at 1 + clip_high (paper: 0.2; DAPO: 0.28)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the k3 estimate of the KL divergence to the starting model (paper: 0.001). At 0 no reference model is
    held, and groups without signal are dropped before the forward pass."""
    truncated: Literal["grade", "zero", "mask"] = "grade"
    """Rollouts cut at their length limit: graded like any other, rewarded 0 (or `recycle.wrong_at`, if that is below),
    or left out of the loss."""
    count_dropped: bool = True
    """Whether tokens of groups without signal count in the loss denominators (they do when nothing is dropped)."""


class TrainConfig(Section):
    """The optimizer and the run."""

    output: Path = Path("runs/spark")
    """Run directory; must be new or empty unless `--resume` is given."""
    steps: Positive = 100
    """Number of generation steps, those of a warm start not included."""
    seed: int = 0
    """Seed of data order, sampling and recycling."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    """Peak learning rate of AdamW (paper: 5e-7)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule over all steps of the run (paper: cosine)."""
    min_lr_ratio: Probability = 0.1
    """The cosine schedule ends at this share of the peak (paper: 0.1)."""
    warmup_ratio: Probability = 0.03
    """Share of the steps in which the learning rate rises linearly (paper: 0.03)."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW betas (paper: 0.9, 0.95)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm limit (paper: 1.0)."""
    epochs_per_step: Positive = 1
    """Optimizer steps on one step's rollouts; above 1 the ratio is taken to log-probabilities recorded before the
    first of them."""
    micro_batch_tokens: Positive = 16384
    """Most tokens in one forward and backward pass, prompts counted once; gradients are accumulated over a step. On a
    CPU small groups are put together up to 1024 tokens only: more is no faster."""
    shared_prefix: Literal["auto", "plain"] = "auto"
    """`auto` computes the prompt of a group once, in generation and in the update, wherever the model's architecture
    allows it; `plain` repeats it for every rollout."""
    threads: Positive | None = None
    """CPU threads of torch; null leaves its default."""
    trackers: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(listed)] = []
    """Where `metrics.jsonl` is mirrored to, besides. A tracker that fails is left out and never stops the run."""
    project: str = "spark-rl"
    """The trackers' project name; the run is called like its output folder."""
    sample_every: Count = 10
    """Steps between tables of sample rollouts, for trackers that show tables; 0 sends none."""
    push_to_hub: str | None = None
    """Hub id such as `me/my-solver` to which `final/` is uploaded when the run is done."""
    hub_private: bool = True
    """Whether that repository is made private."""


class HealthConfig(Section):
    """What alarms a run that it destroys its model, said at once and at the end. A loss, weights or log-probabilities
    that are not finite, or a largest weight a thousand times that of the start, end a run in any case. Checkpoints made
    during an alarm never push out the last good one."""

    stop_after: Count = 10
    """Steps in a row with an alarm after which the run stops, saving nothing more; 0 only warns."""
    max_truncated: Probability = 0.8
    """At least this share of the answers is cut at its length limit, 0.5 more than in the run's best step, and they get
    no more reward than in its first."""
    min_parsed: Probability = 0.2
    """At most this share of the responses holds an answer, 0.5 less than in the run's best step, and they get no more
    reward than in its first."""
    max_same: Probability = 0.8
    """At least this share of a step's answers, to whatever question, is the same one, 0.3 more than of its golds and
    than in the run's best step."""
    min_entropy: Annotated[float, Field(ge=0)] = 0.001
    """The sampled tokens of answers have a mean negative log-probability below this, nats, and below a tenth of that in
    the run's best step, while less than nine of ten answers are right."""
    max_weight_growth: Annotated[float, Field(gt=1)] = 10.0
    """The largest weight is this multiple of the largest at the start (of 1, if that was less)."""


class ValidationConfig(Section):
    """Greedy evaluation on held-out items, before, during and after training."""

    every: Count = 0
    """Steps between evaluations; 0 evaluates only before and after."""
    items: Positive = 500
    """Items of each role, at most."""
    roles: Annotated[list[Role], BeforeValidator(listed)] = list(Role)
    """Roles that are measured. Questions always are, since the items of the others are made of their answers; leave out
    what is not trained where evaluations take long."""
    best: Literal[
        "answer_accuracy",
        "answer_reward",
        "pointwise_balanced_accuracy",
        "pairwise_accuracy",
        "reflection_accuracy",
        "mean",
    ] = "mean"
    """The metric that decides which checkpoint is the best; `mean` is the mean of all accuracies that could be
    measured, `answer_reward` the mean reward of answers, which says more where rewards are not 0 and 1."""


class CheckpointConfig(Section):
    """Exact resume."""

    every: Count = 50
    """Steps between checkpoints; 0 saves only at the end and when stopped."""
    keep: Positive = 2
    """Newest checkpoints that are kept, beside the best one."""
    final: Literal["last", "best"] = "last"
    """The weights that become `final/`."""


class VerifyConfig(Section):
    """Grading of answers."""

    workers: Positive = 1
    """Processes for verifiers that need one."""
    cpu_seconds: Annotated[float, Field(gt=0)] = 5.0
    """CPU time that one answer may cost before its worker is killed."""
    wall_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time that one answer may take before its worker is killed; for verifiers that wait for something."""
    memory_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory that a worker may take (its address space, in GiB)."""
    timed_out: Literal["zero", "mask"] = "zero"
    """An answer on which the verifier runs out of time although it grades the gold: rewarded 0, or left out of the
    loss (reward null). The same of one on which a verifier of the package fails in another way. Neither is ever shown
    to a judge as wrong."""
    max_timeout_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A run stops where a function of yours ran out of time on more than this share of its last 32 answers (and on 6 at
    least); 1 never stops."""


class Config(Section):
    """A whole run."""

    preset: Literal["paper", "spark", "grpo"] | None = None
    """The values this run started from."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompts: PromptsConfig = PromptsConfig()
    rollout: RolloutConfig = RolloutConfig()
    roles: RolesConfig = RolesConfig()
    recycle: RecycleConfig = RecycleConfig()
    self_reward: SelfRewardConfig = SelfRewardConfig()
    verify: VerifyConfig = VerifyConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    health: HealthConfig = HealthConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def num_steps(self) -> int:
        """Steps of the whole run: those of the warm start, then those of RL."""
        return self.warm_start.steps + self.train.steps

    def is_warm_start(self, step: int) -> bool:
        """Whether a step, counted from 1, is of the warm start."""
        return 0 < step <= self.warm_start.steps

    def num_generations(self, role: Role) -> int:
        return self.roles[role].num_generations or self.rollout.num_generations

    def max_new_tokens(self, role: Role) -> int:
        return self.roles[role].max_new_tokens or self.rollout.max_new_tokens

    def temperature(self, role: Role) -> float:
        return self.roles[role].temperature or self.rollout.temperature

    def slots(self) -> dict[Role, int]:
        """Groups of each role in a full step: shares of `groups_per_step`, largest remainders rounded up.

        Roles whose items come in couples get an even number; what that leaves over goes to questions.
        """
        exact = {role: self.roles[role].share * self.rollout.groups_per_step for role in Role}
        slots = {role: int(x + 1e-9) for role, x in exact.items()}
        short = self.rollout.groups_per_step - sum(slots.values())
        for role in sorted(Role, key=lambda r: slots[r] - exact[r])[:short]:
            slots[role] += 1
        for role, in_couples in ((Role.POINTWISE, self.recycle.balanced), (Role.PAIRWISE, self.recycle.both_orders)):
            odd = slots[role] % 2 if in_couples else 0
            slots[role] -= odd
            slots[Role.ANSWER] += odd
        return slots

    @model_validator(mode="after")
    def _every_role_gets_a_slot(self) -> Self:
        for role, num_groups in self.slots().items():
            share = self.roles[role].share
            if share > 0 and num_groups == 0:
                raise ValueError(
                    f"roles.{role}.share is {share:g}, which is too little of {self.rollout.groups_per_step} groups "
                    f"(items that come in couples need two); raise rollout.groups_per_step to {self._enough_groups()}, "
                    "or give the share to roles.answer.share"
                )
        return self

    def _enough_groups(self) -> int:
        """The least multiple of 8 of which every role with a share gets its couple."""
        least = min(self.roles[role].share for role in Role if self.roles[role].share > 0)
        return 8 * math.ceil(2 / least / 8)

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        for says_no in (
            _thresholds,
            _needs_held_out,
            _needs_evaluations,
            _needs_roles,
            _alternates_nothing,
            _trains_nothing,
            _probes_alone,
            _leaks,
            _warm_start_of_nothing,
            _warm_start_without_steps,
            _held_to_the_cold_model,
        ):
            if problem := says_no(self):
                raise ValueError(problem)
        return self

    def dump(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _thresholds(config: Config) -> str | None:
    right, wrong = config.recycle.right_at, config.recycle.wrong_at
    if wrong < right:
        return None
    return f"recycle.wrong_at is {wrong:g}, which is not below recycle.right_at ({right:g}); lower it"


def _needs_held_out(config: Config) -> str | None:
    wanted = {
        "validation.every": config.validation.every > 0,
        "self_reward.enabled": config.self_reward.enabled,
        "checkpoint.final: best": config.checkpoint.final == "best",
    }
    asked = [name for name, is_set in wanted.items() if is_set]
    if not asked or config.data.validation:
        return None
    return f"{asked[0]} needs held-out questions; set data.validation"


def _needs_evaluations(config: Config) -> str | None:
    every, steps = config.validation.every, config.num_steps
    if config.self_reward.enabled and not every:
        return "self_reward.enabled needs the judge measured again and again; set validation.every, for example to 10"
    if config.checkpoint.final == "best" and not 0 < every < steps:
        return (
            f"checkpoint.final is best, but validation.every is {every}, so no step before the last of {steps} is "
            "measured; set it to less, for example to 10"
        )
    return None


def _needs_roles(config: Config) -> str | None:
    validation, reward = config.validation, config.self_reward
    wanted = {f"validation.best is {validation.best}": role for role in Role if validation.best.startswith(role)}
    if reward.enabled:
        wanted[f"self_reward.kind is {reward.kind}"] = Role(reward.kind)
    for setting, role in wanted.items():
        if role not in (Role.ANSWER, *validation.roles):
            return f"{setting}, which needs that role measured; add {role} to validation.roles"
    return None


def _alternates_nothing(config: Config) -> str | None:
    if config.recycle.schedule == "cobatched" or config.roles.answer.share < 1:
        return None
    return "recycle.schedule is alternating, but only roles.answer has a share; give a recycled role one"


def _trains_nothing(config: Config) -> str | None:
    if any(config.roles[role].share > 0 and config.roles[role].weight > 0 for role in Role):
        return None
    return "every role with a share has the weight 0, so nothing would be trained; raise a weight"


def _probes_alone(config: Config) -> str | None:
    if config.recycle.probe_rate == 0 or config.recycle.balanced:
        return None
    return "recycle.probe_rate disturbs couples, which recycle.balanced: false does not make; set it to 0"


def _leaks(config: Config) -> str | None:
    whole = [s for s in [*config.data.validation, *config.data.monitor] if s.size is None]
    held_out = [_rows_of(source, "test") for source in whole]
    trained = [*config.data.train, *config.warm_start.data]
    both = [source.path for source in trained if _rows_of(source, "train") in held_out]
    if not both:
        return None
    return (
        f"data: {both[0]} is both trained on and held out; name different sources, or hold out its first rows by a "
        f"size: data.validation={{path: {both[0]}, size: 100}}"
    )


def _warm_start_of_nothing(config: Config) -> str | None:
    warm = config.warm_start
    if not warm.steps or warm.from_rollouts or warm.data:
        return None
    return (
        f"warm_start.steps is {warm.steps}, but there is nothing to train on; set warm_start.data to rows with "
        "responses, or warm_start.from_rollouts: true"
    )


def _warm_start_without_steps(config: Config) -> str | None:
    warm = config.warm_start
    given = [name for name, is_set in {"data": warm.data, "from_rollouts": warm.from_rollouts}.items() if is_set]
    if warm.steps or not given:
        return None
    return f"warm_start.{given[0]} is set, but warm_start.steps is 0, so it does nothing; set steps, for example to 10"


def _held_to_the_cold_model(config: Config) -> str | None:
    if not config.warm_start.steps or config.loss.kl_coef == 0:
        return None
    return (
        f"loss.kl_coef is {config.loss.kl_coef:g}, which holds RL to the model as it was before the warm start and so "
        "undoes it; set loss.kl_coef to 0"
    )


def _rows_of(source: SourceConfig, split: str) -> tuple[str | None, ...]:
    """What tells apart the rows that a source stands for; `split` is the one that a Hub data set has by default."""
    if source.path.startswith("embedded:") or source.path.endswith(FILE_SUFFIXES):
        return (source.path,)
    generator = split if source.path.startswith("reasoning_gym:") else None  # its held-out seeds are others
    return (source.path, source.subset, source.split or split, generator)
