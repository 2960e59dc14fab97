r"""Our `math` verifier on math-verify's own public test cases.

    python benchmarks/math_verify_agreement.py PATH_TO_A_CHECKOUT_OF_HUGGINGFACE_MATH_VERIFY

Their cases compare two *texts*, from which math-verify extracts. We extract by one rule, the last `\boxed{}`, and
then grade what it holds. So that grading is compared and not extraction, each text is reduced to what it plainly
states: what its last box holds, else its only formula, else itself when it is short. Texts from which an answer would
have to be guessed (prose without a box, with several formulas) are left out, and counted.

Every disagreement is shown with its class:

- `several boxes` (by design): "\boxed{1} and \boxed{2}" is a set to them. Ours is the last one: one answer has one box,
  and a response that boxes every candidate must not be right.
- `option` (by design): the case sets an option of theirs (a coarser precision, variables that may be renamed,
  inequalities as sets) whose default we keep.
- `line break` (extraction): they refuse a formula `$ ... $` that runs over lines; here its content is what is compared.
- `decimal comma` (a limit): in a box "1000,99" is a list of two numbers, to their LaTeX parser as well; these cases run
  with their extractor of plain numbers alone.
- `chain` (by design): they take the last side of `x = 7 = 11` for its value; to us its sides contradict each other.
- `kind` (by design): they take the pair (1,3) for the set {1,3}, but no interval for the inequalities that describe it.
- `precision` (by design): they round to six decimals, so 1/12 is 0.0833333333333333.
- `theirs` (by design): they cannot read \mathrm{e}, and so find 1 - 1/e equal to 1 + 1/e, as that test records. We can.
- `unexplained`: look at it.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spark_rl.verify import Check, VerifierPool, box, extract_answer, visible

FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
PERCENT = re.compile(r"\s*(?:%|percent|pct)")
SHORT = 25
DEFAULTS = {"strict": True, "allow_set_relation_comp": False, "precision": 6}


@dataclass(frozen=True)
class Case:
    """One of their cases: two texts, and whether they must be equal."""

    place: str
    gold: str
    prediction: str
    expected: bool
    options: dict[str, Any]


def cases(checkout: Path) -> Iterator[Case]:
    """What their `pytest.mark.parametrize` marks hold."""
    sys.path.insert(0, str(checkout))
    sys.dont_write_bytecode = True
    for path in sorted((checkout / "tests").glob("test_*.py")):
        module = importlib.import_module(f"tests.{path.stem}")
        for name, function in vars(module).items():
            if getattr(function, "__module__", None) != module.__name__:
                continue
            for mark in getattr(function, "pytestmark", []):
                for number, values in enumerate(mark.args[1]):
                    given = dict(zip(mark.args[0].replace(" ", "").split(","), values, strict=True))
                    yield _case(f"{path.stem}::{name}[{number}]", given)


def _case(place: str, given: dict[str, Any]) -> Case:
    expected = given.pop("expected", None) if "expected" in given else given.pop("result")
    prediction, gold = given.pop("pred"), given.pop("gold", "")
    options = {key: value for key, value in given.items() if DEFAULTS.get(key) != value}
    return Case(place, gold, prediction, bool(expected), options)


def stated(text: str) -> str | None:
    """The answer that a text plainly states, or None."""
    if "boxed" in text:
        return extract_answer(text)
    text = text.strip()
    formulas = list(FORMULA.finditer(text))
    if len(formulas) == 1:
        (formula,) = formulas
        percent = PERCENT.match(text, formula.end())
        prose = text[: formula.start()] + text[formula.end() :]
        content = next(filter(None, formula.groups())).strip() + (percent[0] if percent else "")
        return None if re.search(r"\d", prose) else content
    return text if not formulas and len(text) <= SHORT else None


def classify(case: Case, gold: str, answer: str) -> str:
    if any(len(re.findall(r"\\boxed", visible(text))) > 1 for text in (case.gold, case.prediction)):
        return "several boxes"
    if case.options:
        return "option"
    if "\n" in case.prediction.strip():
        return "line break"
    if any(text.count("=") > 1 or "$ =" in text or r"\approx" in text for text in (gold, answer)):
        return "chain"
    if gold.startswith("(") != answer.startswith("(") or r"\in" in gold:
        return "kind"
    if any(re.search(r"\d,\d", text) for text in (gold, answer)):
        return "decimal comma"
    if "0.0833" in answer:
        return "precision"
    return "theirs" if r"\mathrm{e}" in gold else "unexplained"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    every = list(cases(parser.parse_args().checkout))
    if not every:
        parser.error("no test cases there; give the root of a checkout")
    stating = [(case, stated(case.gold), stated(case.prediction)) for case in every]
    pairs = [(case, gold, answer) for case, gold, answer in stating if gold and answer]
    with VerifierPool() as pool:
        verdicts = pool.verify([Check(box(answer), gold) for _, gold, answer in pairs])
    table = Table(title="disagreements", show_lines=True)
    for column in ("case", "class", "gold", "prediction", "theirs", "ours"):
        table.add_column(column, overflow="fold")
    classes: Counter[str] = Counter()
    for (case, gold, answer), verdict in zip(pairs, verdicts, strict=True):
        if (verdict.reward == 1) != case.expected:
            name = classify(case, gold, answer)
            classes[name] += 1
            cells = (case.place, name, gold, answer, str(int(case.expected)), verdict.reason)
            table.add_row(*(escape(cell) for cell in cells))
    Console(width=160).print(table)
    agreed = len(pairs) - classes.total()
    print(f"{len(every)} cases, {len(pairs)} of them comparable; {agreed} agree ({agreed / len(pairs):.1%})")
    print(", ".join(f"{name}: {count}" for name, count in classes.most_common()))


if __name__ == "__main__":
    main()
