"""The evaluation sets of the SPARK paper (section 4), as they were published.

Each set is an entry of `PUBLISHED`: where it is, how a row is read (`published_rows.py`), how it is officially scored
and what is done here. Answers are stated in a box, or as `data.answer_format` has it, and graded by our verifiers, so
where the official rule asks a GPT to find or to compare the answer, a rule does it here and `rule` says so. Scores of
`paper-general` and `paper-vision` therefore compare with each other, and only with care with those that others print.

Schemas were taken from cards and from the code of other evaluators, without a look at the data itself: `schema_source`
says which, `unverified` what they left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spark_rl.evaluate import published_rows as rows
from spark_rl.evaluate.published_rows import RowFunction


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A set as it was published."""

    name: str
    suite: str
    hub_id: str
    splits: tuple[str, ...]
    row: RowFunction
    verifiers: tuple[str, ...]
    """Those its questions name; empty for items to judge."""
    rule: str
    """How it is scored officially, and here."""
    licence: str
    citation: str
    schema_source: str
    """Repository and path of the loader or card that was followed."""
    unverified: str
    """What could not be checked without the data."""
    subset: str | None = None
    images: tuple[str, ...] = ()
    """The columns with images; the first is never empty."""
    files: tuple[str, ...] = ()
    """What the names of the splits' files begin with, where that is not the split's own name."""

    @property
    def has_images(self) -> bool:
        return bool(self.images)

    @property
    def place(self) -> str:
        """What messages call it: the data set of the Hub, subset and split."""
        split = self.splits[0] if len(self.splits) == 1 else f"{self.splits[0]} to {self.splits[-1]}"
        return f"{self.hub_id} ({', '.join(filter(None, [self.subset, split]))})"


_MAA = "Mathematical Association of America, American Mathematics Competitions"
_HARNESS = "EleutherAI/lm-evaluation-harness lm_eval/tasks"
_LMMS = "EvolvingLMMs-Lab/lmms-eval lmms_eval/tasks"
_STATED = "Accuracy, the stated answer being mathematically equal to the gold"
_LETTERS = "Accuracy on the letter of the right option"
_EXTRACTED = "officially a GPT finds the letter in the response, here it must be stated as the answer"

_TEXT = (
    PublishedSet(
        name="aime24",
        suite="paper-text",
        hub_id="Maxwell-Jia/AIME_2024",
        splits=("train",),
        row=rows.solved("Problem", "Answer", "math", "ID"),
        verifiers=("math",),
        rule=f"{_STATED}; officially, whole numbers from 0 to 999.",
        licence="MIT",
        citation=f"{_MAA}: AIME 2024",
        schema_source=f"{_HARNESS}/aime/aime24.yaml",
        unverified="Which copy of the problems the paper used; the licence is as remembered of the card.",
    ),
    PublishedSet(
        name="aime25",
        suite="paper-text",
        hub_id="math-ai/aime25",
        splits=("test",),
        row=rows.solved("problem", "answer", "math", "id"),
        verifiers=("math",),
        rule=f"{_STATED}; one gold is written in degrees, which need not be repeated.",
        licence="Apache-2.0",
        citation=f"{_MAA}: AIME 2025",
        schema_source=f"{_HARNESS}/aime/aime25.yaml",
        unverified="Which copy of the problems the paper used; the licence is as remembered of the card.",
    ),
    PublishedSet(
        name="amc23",
        suite="paper-text",
        hub_id="math-ai/amc23",
        splits=("test",),
        row=rows.solved("question", "answer", "math", "id"),
        verifiers=("math",),
        rule=f"{_STATED}; the problems were rewritten to ask for a number and not for an option.",
        licence="unknown",
        citation=f"{_MAA}: AMC 12, 2023",
        schema_source="scripts of several public repositories that read its columns question and answer",
        unverified="The card was not seen: licence, and whether answers are whole numbers or decimals such as 27.0.",
    ),
    PublishedSet(
        name="gsm8k",
        suite="paper-text",
        hub_id="openai/gsm8k",
        subset="main",
        splits=("test",),
        row=rows.gsm8k,
        verifiers=("numeric",),
        rule="Accuracy, the stated number being equal to the one after '####' in the reference solution.",
        licence="MIT",
        citation="Cobbe et al. 2021, arXiv:2110.14168",
        schema_source=f"{_HARNESS}/gsm8k/gsm8k.yaml",
        unverified="Nothing of the schema; the licence is as remembered of the card.",
    ),
    PublishedSet(
        name="math-500",
        suite="paper-text",
        hub_id="HuggingFaceH4/MATH-500",
        splits=("test",),
        row=rows.solved("problem", "answer", "math", "unique_id"),
        verifiers=("math",),
        rule=f"{_STATED} (officially, after normalisation of its LaTeX).",
        licence="MIT",
        citation="Hendrycks et al. 2021, arXiv:2103.03874; Lightman et al. 2023, arXiv:2305.20050",
        schema_source=f"{_HARNESS}/minerva_math/minerva_math500.yaml",
        unverified="Whether every gold is one that the math verifier accepts as its own answer; licence of the copy.",
    ),
    PublishedSet(
        name="mmlu-stem",
        suite="paper-text",
        hub_id="cais/mmlu",
        subset="all",
        splits=("test",),
        row=rows.mmlu_stem,
        verifiers=("choice",),
        rule=f"{_LETTERS} over the 19 STEM subjects; officially few-shot by log-likelihood, here zero-shot as the "
        "stated answer.",
        licence="MIT",
        citation="Hendrycks et al. 2021, arXiv:2009.03300",
        schema_source=f"{_HARNESS}/mmlu/default/_mmlu_stem.yaml",
        unverified="Whether the paper counts the same subjects; the licence is as remembered of the card.",
    ),
)

_VISION = (
    PublishedSet(
        name="mathvista",
        suite="paper-vision",
        hub_id="AI4Math/MathVista",
        splits=("testmini",),
        images=("decoded_image",),
        row=rows.mathvista,
        verifiers=("choice", "numeric", "math"),
        rule="Accuracy; officially a GPT finds the answer, which is then compared as option, whole number, rounded "
        "number or list; here it must be stated as the answer, a number rounding to the gold.",
        licence="CC BY-SA 4.0",
        citation="Lu et al. 2024, arXiv:2310.02255",
        schema_source=f"its card; {_LMMS}/mathvista/mathvista_evals.py",
        unverified="Whether every gold of a multiple-choice row is literally one of its choices.",
    ),
    PublishedSet(
        name="mathvision",
        suite="paper-vision",
        hub_id="MathLLMs/MathVision",
        splits=("test",),
        images=("decoded_image",),
        row=rows.mathvision,
        verifiers=("choice", "math"),
        rule=f"{_LETTERS}, or mathematical equality where there are no options; officially the option's own text is "
        "accepted as well.",
        licence="MIT",
        citation="Wang et al. 2024, arXiv:2402.14804",
        schema_source=f"{_LMMS}/mathvision/utils.py",
        unverified="Whether the paper took test or testmini; whether all golds are read; licence not seen.",
    ),
    PublishedSet(
        name="wemath",
        suite="paper-vision",
        hub_id="We-Math/We-Math",
        splits=("testmini",),
        images=("image_path",),
        row=rows.wemath,
        verifiers=("choice",),
        rule=f"{_LETTERS}; the official score (strict or loose) weighs problems against their one-step parts, which "
        "share `id` and differ in `key` of the metadata, and is not computed here.",
        licence="CC BY-NC 4.0",
        citation="Qiao et al. 2024, arXiv:2407.01284",
        schema_source=f"{_LMMS}/wemath/reasoning/utils.py; a row as its README prints it",
        unverified="Which of the scores the paper prints; whether options are always parted by semicolons; licence.",
    ),
    PublishedSet(
        name="mathverse",
        suite="paper-vision",
        hub_id="AI4Math/MathVerse",
        subset="testmini",
        splits=("testmini",),
        images=("image",),
        row=rows.mathverse,
        verifiers=("choice", "math"),
        rule="Accuracy over five versions of each problem (which share `variant_of` of the metadata); officially a GPT "
        "extracts and compares the answer (units and wording are free), here letter or mathematical equality of "
        "the stated answer.",
        licence="MIT",
        citation="Zhang et al. 2024, arXiv:2403.14624",
        schema_source=f"{_LMMS}/mathverse/utils.py; ZrrSkywalker/MathVerse evaluation/prompts.py",
        unverified="Whether every multiple-choice gold is a letter, and how many free-form golds carry units; which "
        "versions the paper averages; licence.",
    ),
    PublishedSet(
        name="dynamath",
        suite="paper-vision",
        hub_id="DynaMath/DynaMath_Sample",
        splits=tuple(f"sample_variant{i}" for i in range(1, 11)),
        files=tuple(f"sample{i}" for i in range(1, 11)),
        images=("decoded_image",),
        row=rows.dynamath,
        verifiers=("choice", "numeric", "math"),
        rule="Accuracy averaged over ten variants of each of 501 problems (officially also the worst of the ten, which "
        "share `variant_of` of the metadata); numbers to 0.001; texts officially by containment, here by equality.",
        licence="Apache-2.0",
        citation="Zou et al. 2024, arXiv:2411.00836",
        schema_source="open-compass/VLMEvalKit vlmeval/dataset/dynamath.py; the splits of its card; columns as scripts "
        "of public repositories read them",
        unverified="Whether the paper prints the average or the worst case; whether options stand in the question; the "
        "licence, which its repository calls MIT.",
    ),
    PublishedSet(
        name="logicvista",
        suite="paper-vision",
        hub_id="lscpku/LogicVista",
        splits=("test",),
        images=("image",),
        row=rows.logicvista,
        verifiers=(rows.SAME_LETTERS,),
        rule=f"Accuracy, all letters being right and no other; {_EXTRACTED}.",
        licence="Apache-2.0",
        citation="Xiao et al. 2024, arXiv:2407.04973",
        schema_source=f"{_LMMS}/logicvista/reasoning/utils.py; Yijia-Xiao/LogicVista data/README.md",
        unverified="The copy on the Hub is not the authors' own; whether all of its golds are letters.",
    ),
    PublishedSet(
        name="mmk12",
        suite="paper-vision",
        hub_id="FanqingM/MMK12",
        splits=("test",),
        images=("image",),
        row=rows.lettered("question", "answer", "id", "subject"),
        verifiers=("choice",),
        rule=f"{_LETTERS}; four subjects of 500 questions, options in the question.",
        licence="Apache-2.0",
        citation="Meng et al. 2025, arXiv:2503.07365",
        schema_source="scripts of public repositories that read its test split (id, question, answer, image, subject)",
        unverified="The card was not seen; whether the paper took this split or lmms-lab-encoder/k12.",
    ),
)

_REWARD = (
    PublishedSet(
        name="reward-bench-2",
        suite="paper-reward",
        hub_id="allenai/reward-bench-2",
        splits=("test",),
        row=rows.reward_bench_2,
        verifiers=(),
        rule="Mean over six subsets: accuracy of the highest score (a tie of n counts 1/n), in Ties 0.3 accuracy on "
        "tied and 0.3 on reference prompts, 0.2 + 0.2 margins (`tied:i` belongs to `ref:i`), 0.01 size of margins.",
        licence="ODC-BY 1.0",
        citation="Malik et al. 2025, arXiv:2506.01937",
        schema_source="its card; allenai/reward-bench rewardbench/utils.py, scripts/run_v2.py",
        unverified="Whether ids repeat within a subset.",
    ),
    PublishedSet(
        name="vl-reward-bench",
        suite="paper-reward",
        hub_id="MMInstruction/VL-RewardBench",
        splits=("test",),
        images=("image",),
        row=rows.vl_reward_bench,
        verifiers=(),
        rule="Accuracy of the preference: overall, and the mean over the groups general, hallucination and reasoning; "
        "officially in one order that the responses' lengths decide, here in both.",
        licence="MIT",
        citation="Li et al. 2024, arXiv:2411.17451",
        schema_source=f"its card; {_LMMS}/vl_rewardbench/utils.py",
        unverified="Whether the ids of WildVision and VLFeedback begin as expected: all unknown ones are general.",
    ),
)

_GENERAL = (
    PublishedSet(
        name="mmbench",
        suite="paper-general",
        hub_id="lmms-lab-encoder/MMBench",
        subset="en",
        splits=("dev",),
        images=("image",),
        row=rows.mmbench,
        verifiers=("choice",),
        rule=f"{_LETTERS}; officially each question counts if it is right in every rotation of its options, here it is "
        f"asked once: rotated copies (`index` from a million on) are left out; {_EXTRACTED}.",
        licence="Apache-2.0",
        citation="Liu et al. 2023, arXiv:2307.06281",
        schema_source=f"{_LMMS}/mmbench/en_utils.py",
        unverified="Whether the paper took dev or test (which has no golds) and version 1.0 or 1.1; licence not seen.",
    ),
    PublishedSet(
        name="mmstar",
        suite="paper-general",
        hub_id="Lin-Chen/MMStar",
        splits=("val",),
        images=("image",),
        row=rows.lettered("question", "answer", "index", "category", "l2_category"),
        verifiers=("choice",),
        rule=f"{_LETTERS}, averaged over six categories; options stand in the question.",
        licence="unknown",
        citation="Chen et al. 2024, arXiv:2403.20330",
        schema_source=f"{_LMMS}/mmstar/utils.py",
        unverified="The card was not seen: licence.",
    ),
    PublishedSet(
        name="mmmu",
        suite="paper-general",
        hub_id="lmms-lab-encoder/MMMU",
        splits=("validation",),
        images=tuple(f"image_{i}" for i in range(1, 8)),
        row=rows.mmmu,
        verifiers=("choice", rows.ANY_OF),
        rule="Accuracy on the letter, or for open questions on one of the accepted answers; officially these may also "
        "stand within the response, here in the stated answer alone.",
        licence="Apache-2.0",
        citation="Yue et al. 2024, arXiv:2311.16502",
        schema_source=f"{_LMMS}/mmmu/utils.py",
        unverified="Whether an open gold with several answers is always written as a list; licence not seen.",
    ),
    PublishedSet(
        name="mmvet",
        suite="paper-general",
        hub_id="lmms-lab-encoder/MMVet",
        splits=("test",),
        images=("image",),
        row=rows.mmvet,
        verifiers=(rows.HAS_PARTS,),
        rule="Mean score; officially GPT-4 grades from 0 to 1, here it is the share of the gold's <AND> parts in the "
        "stated answer (best <OR>), which is too strict where the gold is a sentence and too kind to an answer that "
        "names all.",
        licence="Apache-2.0",
        citation="Yu et al. 2023, arXiv:2308.02490",
        schema_source=f"{_LMMS}/mmvet/utils.py",
        unverified="How many golds are sentences; licence of the images.",
    ),
    PublishedSet(
        name="scienceqa",
        suite="paper-general",
        hub_id="lmms-lab-encoder/ScienceQA",
        subset="ScienceQA-IMG",
        splits=("test",),
        images=("image",),
        row=rows.scienceqa,
        verifiers=("choice",),
        rule=f"{_LETTERS}, over the questions with an image.",
        licence="CC BY-NC-SA 4.0",
        citation="Lu et al. 2022, arXiv:2209.09513",
        schema_source=f"{_LMMS}/scienceqa/utils.py",
        unverified="Whether the paper took all questions or those with an image; licence not seen.",
    ),
    PublishedSet(
        name="pope",
        suite="paper-general",
        hub_id="lmms-lab-encoder/POPE",
        splits=("test",),
        images=("image",),
        row=rows.pope,
        verifiers=("choice",),
        rule="Accuracy over random, popular and adversarial questions (`category` of the metadata); officially also F1 "
        "of Yes, which is not computed here.",
        licence="MIT",
        citation="Li et al. 2023, arXiv:2305.10355",
        schema_source=f"{_LMMS}/pope/utils.py",
        unverified="Whether the paper prints accuracy or F1; the name of the column `category`; licence not seen.",
    ),
    PublishedSet(
        name="seedbench",
        suite="paper-general",
        hub_id="lmms-lab-encoder/SEED-Bench",
        splits=("test",),
        images=("image",),
        row=rows.seedbench,
        verifiers=("choice",),
        rule=f"{_LETTERS}, over the image questions; officially by log-likelihood, and over videos as well.",
        licence="CC BY-NC 4.0",
        citation="Li et al. 2023, arXiv:2307.16125",
        schema_source=f"{_LMMS}/seedbench/utils.py",
        unverified="Whether the paper counts the video questions; licence not seen.",
    ),
    PublishedSet(
        name="realworldqa",
        suite="paper-general",
        hub_id="lmms-lab-encoder/RealWorldQA",
        splits=("test",),
        images=("image",),
        row=rows.realworldqa,
        verifiers=("choice",),
        rule="Accuracy on the letter, word or number, up to case.",
        licence="CC BY-ND 4.0",
        citation="xAI 2024, Grok-1.5 Vision preview",
        schema_source=f"{_LMMS}/realworldqa/utils.py",
        unverified="How options are marked in the question; licence not seen.",
    ),
)

PUBLISHED: Mapping[str, PublishedSet] = {each.name: each for each in (*_TEXT, *_VISION, *_REWARD, *_GENERAL)}
