"""Score a recipe: loss and answers on its validation rows, before and after, without training anything."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from ftlab import evaluate
from ftlab.data import registry
from ftlab.errors import fail, say
from ftlab.runs import chat, rows
from ftlab.runs.checkpoint import write_json
from ftlab.runs.keys import Recipe
from ftlab.runs.train import SCORES

Scores = dict[str, dict[str, float]]
# What can be asked for: `loss` brings perplexity with it, `exact_match` writes every answer and takes far longer.
FIGURES = ("loss", "exact_match")


def score(recipe: Recipe, limit: int = 200, figures: Sequence[str] = FIGURES) -> Scores:
    """Return {"base" and/or "tuned": {"loss", "perplexity", "exact_match", "rows"}} and write it into the run folder.

    The rows are those of `eval_dataset`, or of `dataset` where there is none. The adapter is `adapter_name_or_path`, or
    the one in `output_dir`; without one only the base is scored.

    Args:
        limit: rows that are read at most.
        figures: which of FIGURES are worked out.
    Raises:
        LabError: no data set, a stage without answers, or an adapter that cannot be read.
    """
    name = recipe.eval_dataset or recipe.dataset
    if not name:
        raise fail("recipe_missing_key", key="eval_dataset")
    if recipe.objective not in ("sft", "ppo", "grpo"):
        raise fail("eval_stage", where="stage", stage=recipe.objective)
    if not recipe.eval_dataset:
        print(say("eval_seen", name=name))
    asked = registry.load(
        name, recipe.dataset_dir, max_samples=recipe.max_samples, substitutions=recipe.dataset_substitutions
    )
    if "messages" not in asked.column_names:
        raise fail("train_columns", where=name, stage="sft", needed="messages", found=", ".join(asked.column_names))
    chosen = [rows.present(row) for row in asked.select(range(min(limit, len(asked))))]
    model, tokenizer = chat.from_recipe(recipe)
    found: Scores = {}
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            found["base"] = scores(recipe, model, tokenizer, chosen, figures)
        found["tuned"] = scores(recipe, model, tokenizer, chosen, figures)
    else:
        found["base"] = scores(recipe, model, tokenizer, chosen, figures)
    if recipe.output_dir and Path(recipe.output_dir).expanduser().is_dir():
        write_json(Path(recipe.output_dir).expanduser() / SCORES, found)
    return found


def scores(
    recipe: Recipe, model: Any, tokenizer: Any, chosen: list[dict[str, Any]], figures: Sequence[str] = FIGURES
) -> dict[str, float]:
    """Return the figures of one model on rows of messages; the last answer of each is asked for."""
    found: dict[str, float] = {}
    if "loss" in figures:
        perplexity = evaluate.perplexity(model, tokenizer, chosen, cutoff_len=recipe.cutoff_len)
        found |= {"loss": math.log(perplexity), "perplexity": perplexity}
    if "exact_match" in figures:
        asked = [row["messages"][:-1] for row in chosen]
        wanted = [row["messages"][-1]["content"] for row in chosen]
        most = min(max(len(tokenizer(text).input_ids) for text in wanted) + 8, recipe.cutoff_len)
        answers = evaluate.generate_answers(model, tokenizer, asked, max_new_tokens=most)
        found["exact_match"] = evaluate.exact_match(answers, wanted)
    return found | {"rows": len(chosen)}


def table(found: Scores) -> str:
    """Return scores as a table, a line per model."""
    lines = [f"{'':<8}{'rows':>6}{'loss':>9}{'perplexity':>12}{'exact answers':>15}"]
    for name, row in found.items():
        low, high = evaluate.interval(row["exact_match"], int(row["rows"]))
        share = f"{row['exact_match']:.0%} ({low:.0%}-{high:.0%})"
        lines.append(f"{name:<8}{row['rows']:>6}{row['loss']:>9.3f}{row['perplexity']:>12.2f}{share:>15}")
    return "\n".join(lines)
