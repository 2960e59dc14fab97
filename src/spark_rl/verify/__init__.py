"""Rule verification: one answer extractor, a registry of verifiers, and a worker pool that survives any of them."""

from spark_rl.verify.extract import ANSWER_TAG, box, extract_answer, visible
from spark_rl.verify.formats import BOXED, Format, format_of
from spark_rl.verify.pool import Check, VerifierHangs, VerifierPool
from spark_rl.verify.seen import Seen, better_format, formats_seen, verdicts_seen
from spark_rl.verify.verifiers import (
    SELF,
    VERIFIERS,
    Verdict,
    Verifier,
    check_gold,
    check_trusted,
    equality,
    failed,
    gold_problem,
    grade,
    resolve,
    verdict_side,
)

__all__ = [
    "ANSWER_TAG",
    "BOXED",
    "SELF",
    "VERIFIERS",
    "Check",
    "Format",
    "Seen",
    "Verdict",
    "Verifier",
    "VerifierHangs",
    "VerifierPool",
    "better_format",
    "box",
    "check_gold",
    "check_trusted",
    "equality",
    "extract_answer",
    "failed",
    "format_of",
    "formats_seen",
    "gold_problem",
    "grade",
    "resolve",
    "verdict_side",
    "verdicts_seen",
    "visible",
]
