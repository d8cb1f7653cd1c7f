"""Score a recipe: loss and answers on its held-out examples, before and after training, without training anything."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftlab import evaluate, manifests, responses, tokens
from ftlab.errors import fail, say
from ftlab.recipe.keys import Recipe
from ftlab.runs import chat, dataset, folder

Scores = dict[str, dict[str, float]]
# Token ids and labels of one conversation, up to the answer that is asked for.
Example = dict[str, list[int]]
# What can be asked for: `loss` brings perplexity with it, `exact_match` writes every answer and takes far longer.
FIGURES = ("loss", "exact_match")
# Tokens that an answer may have more than the longest expected one.
SPARE = 8


def score(recipe: Recipe, limit: int = 200, figures: Sequence[str] = FIGURES) -> Scores:
    """Return {"base" and/or "tuned": {"loss", "perplexity", "exact_match", "rows"}} and write it into the run folder.

    The examples are those of `eval_dataset`, else the ones that `val_size` holds out of `dataset`, in the tokens that
    training sees. "tuned" is what the run in `output_dir` has left, else `adapter_name_or_path`; where there is
    neither, which is said, only the base is scored.

    Args:
        limit: examples that are scored at most.
        figures: which of FIGURES are worked out.
    Raises:
        LabError: no data set, a stage without answers, or weights that cannot be read or belong to another base.
    """
    if not (recipe.eval_dataset or recipe.dataset):
        raise fail("recipe_missing_key", key="eval_dataset")
    if recipe.objective not in ("sft", "ppo", "grpo"):
        raise fail("eval_stage", where="stage", stage=recipe.objective)
    trained = chat.trained(recipe)
    say_untrained(recipe, trained)
    options = chat.options_of(recipe)
    model, tokenizer = chat.load(recipe.model_name_or_path, trained, **options)
    chosen = held_out(recipe, tokenizer, trained)[:limit]
    found: Scores = {}
    if trained is None:
        found["base"] = scores(model, tokenizer, chosen, figures)
    elif chat.switchable(model):
        with model.disable_adapter():
            found["base"] = scores(model, tokenizer, chosen, figures)
        found["tuned"] = scores(model, tokenizer, chosen, figures)
    else:
        tuned = scores(model, tokenizer, chosen, figures)
        # Only one of them is in memory at a time.
        del model
        model, _ = chat.load(recipe.model_name_or_path, **options)
        found = {"base": scores(model, tokenizer, chosen, figures), "tuned": tuned}
    if recipe.output_dir and Path(recipe.output_dir).expanduser().is_dir():
        manifests.write_json(Path(recipe.output_dir).expanduser() / folder.SCORES, found)
    return found


def say_untrained(recipe: Recipe, trained: Path | None) -> None:
    """Print a note if a recipe's run folder has no trained weights, or those of another recipe."""
    if not recipe.output_dir:
        return
    run = Path(recipe.output_dir).expanduser()
    if trained != run:
        print(say("eval_untrained", where=run, instead=trained or recipe.model_name_or_path))
    elif changed := folder.changes(manifests.read_manifest(run) or {}, recipe, {}):
        print(say("eval_other_run", where=run, changed=changed))


def held_out(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, trained: Path | None) -> list[Example]:
    """Return the examples to score on, encoded; it is said where the run may have been trained on them."""
    # Of a prompt that is trained on nobody could tell where the answer begins.
    plain = recipe.model_copy(update={"train_on_prompt": False})
    if recipe.eval_dataset:
        found = dataset.prepared(plain, recipe.eval_dataset, tokenizer)
    elif recipe.val_size:
        examples = dataset.read_splits(recipe)[1]
        found = dataset.as_trained(recipe, examples, tokenizer)
        if trained and not held_out_by(trained, dataset.digest(found)):
            print(say("eval_other_rows", where=str(trained)))
        found = dataset.as_trained(plain, examples, tokenizer) if recipe.train_on_prompt else found
    else:
        print(say("eval_seen", name=recipe.dataset))
        found = dataset.prepared(plain, recipe.dataset or "", tokenizer)
    return [example for row in found for example in encoded(row, tokenizer)]


def held_out_by(trained: Path, digest: str) -> bool:
    """Return True if a run validated on the examples with this digest: then it was not trained on them."""
    manifest = manifests.read_manifest(trained) or manifests.read_manifest(trained.parent) or {}
    return str(manifest.get("data")).partition("+")[2] == digest


def encoded(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return a prepared row's token ids and labels; those of ppo and grpo are still text."""
    if "input_ids" in row:
        return [row]
    messages = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
    return tokens.encode(tokenizer, {"messages": messages})


def scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], figures: Sequence[str] = FIGURES
) -> dict[str, float]:
    """Return the figures of one model on encoded examples; the last answer of each is asked for."""
    found: dict[str, float] = {}
    if "loss" in figures:
        loss = evaluate.mean_loss(model, examples, tokenizer.pad_token_id)
        found |= {"loss": loss, "perplexity": math.exp(loss)}
    if "exact_match" in figures:
        found["exact_match"] = exact_match(model, tokenizer, examples)
    return found | {"rows": len(examples)}


def exact_match(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """Return the share of examples whose last answer the model gives: text without reasoning, tool calls as calls."""
    pairs = [responses.split(example) for example in examples]
    most = max(len(wanted) for _, wanted in pairs) + SPARE
    answers = evaluate.generate_ids(model, tokenizer, [prompt for prompt, _ in pairs], most)
    reader = responses.Reader(tokenizer)
    right = [
        reader.read(prompt, answer).equals(reader.read(prompt, wanted))
        for (prompt, wanted), answer in zip(pairs, answers, strict=True)
    ]
    return sum(right) / len(right)


def table(found: Scores) -> str:
    """Return scores as a table, a line per model."""
    lines = [f"{'':<8}{'n':>6}{'loss':>9}{'perplexity':>12}   exact answers (95% interval)"]
    for name, row in found.items():
        low, high = evaluate.interval(row["exact_match"], int(row["rows"]))
        share = f"{row['exact_match']:.0%} ({low:.0%}-{high:.0%})"
        lines.append(f"{name:<8}{row['rows']:>6}{row['loss']:>9.3f}{row['perplexity']:>12.2f}   {share}")
    return "\n".join(lines)
