"""The model card of `final/`."""

from __future__ import annotations

from typing import Any

from spark_rl.config import Config
from spark_rl.train.validation import HEADLINE


def model_card(config: Config, summary: dict[str, Any]) -> str:
    """Markdown: how the model was trained and what it scored on the held-out items before and after."""
    before, after = summary["before"], summary["after"]
    rows = [
        f"| {name} | {before[name]:.3f} | {after[name]:.3f} |"
        for name in HEADLINE.values()
        if name in before and name in after
    ]
    table = "\n".join(["| held-out, greedy | before | after |", "|---|---|---|", *rows]) if rows else ""
    return f"""---
library_name: transformers
tags: [spark-rl, grpo, reward-model, llm-as-a-judge]
---

# A solver and a judge

Trained from `{config.model.path}` with spark-rl (SPARK, arXiv 2509.22624) for {summary["steps"]} steps: the same
weights answer questions, judge responses (one, or which of two) and correct earlier responses.

{table}

<details><summary>Configuration</summary>

```yaml
{config.dump()}```

</details>
"""
