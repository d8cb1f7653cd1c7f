"""Generate docs/coming-from.md, how the keys of other frameworks are read, from the tables that read them.

Regenerate the page with `python -m ftlab.recipe.coming_from`.
"""

from pathlib import Path

from ftlab.recipe.foreign_files import PEFT, SWIFT, TRL, UNSLOTH
from ftlab.recipe.frameworks.alpaca_lora import ALPACA_LORA
from ftlab.recipe.frameworks.axolotl import AXOLOTL
from ftlab.recipe.frameworks.llamafactory import LLAMA_FACTORY_V1
from ftlab.recipe.frameworks.table import Framework
from ftlab.recipe.frameworks.verl import VERL
from ftlab.recipe.translated_keys import reason

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
HEAD = """# Coming from another framework

    ftlab recipe from FILE                       # print the same run as a recipe
    ftlab recipe from FILE --as-yaml OUT.yaml    # write it to a new file
    ftlab train FILE                             # or run the file as it is

FILE is a YAML or JSON file, a shell script with one training command, or an unsloth script or notebook. ftlab does not
run it, and reads only literal values from a script. It recognizes the framework by the keys.

Each key is mapped to keys of a recipe, reported as ignored, or refused. If any key is refused, the message lists all of
them, and nothing is started. A key that the file leaves out gets the framework's own default where that differs from
ftlab's, and a note lists these keys. Data files are recognized by their columns ([data.md](data.md)); for hub ids the
recipe gets `dataset_dir: ONLINE`. Fields of `transformers.TrainingArguments` keep their names, except in verl,
alpaca-lora and PEFT, which don't have them.

The reverse is `ftlab recipe show FILE --as ...` ([recipes.md](recipes.md#the-same-run-in-other-frameworks)).

## LLaMA-Factory
Its YAML files are recipes ([recipes.md](recipes.md)). The same keys are also read from JSON, from a
`llamafactory-cli train` command, from the `training_args.yaml` that its web UI (LLaMA Board) writes into a run folder,
and from the file that "Save arguments" writes there. [from-llamafactory.md](from-llamafactory.md) has the commands,
first steps and differences.
"""
READ = {
    "LLaMA-Factory, format v1": (
        LLAMA_FACTORY_V1,
        "YAML with `model` and a key such as `train_dataset`",
    ),
    "axolotl": (AXOLOTL, "YAML with `base_model`, or an `axolotl train` command"),
    "ms-swift": (SWIFT, "a `swift sft`, `swift pt` or `swift rlhf` command, or YAML with `model` and `dataset`"),
    "TRL": (
        TRL,
        "a command with `trl sft` (or `dpo`, `kto`, `reward`, `grpo`, `rloo`) or with the path of a script of TRL, "
        "or the YAML of `--config`. A YAML doesn't name its trainer: add `stage=dpo` on the command line",
    ),
    "unsloth": (
        UNSLOTH,
        "a script or notebook: the literal arguments of `FastLanguageModel.from_pretrained`, `get_peft_model`, "
        "`get_chat_template`, `load_dataset` and TRL's config classes",
    ),
    "verl": (VERL, "a `python3 -m verl.trainer.main_ppo` command, for grpo and ppo"),
    "alpaca-lora": (ALPACA_LORA, "a command that runs `finetune.py`"),
    "PEFT": (PEFT, "the settings of an `adapter_config.json`; add `dataset` and `output_dir` on the command line"),
}


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(f"\n## {title}\nRead: {how}.\n\n{section(one)}" for title, (one, how) in READ.items())


def section(framework: Framework) -> str:
    """Return how a framework's keys are read: a table of renamed keys, and three lists."""
    names = {theirs: ours for ours, theirs in framework.names.items()} | framework.also
    plain = {theirs: ours for theirs, ours in names.items() if theirs not in framework.read}
    rows = [("key", "recipe"), ("---", "---")]
    rows += [(f"`{theirs}`", f"`{ours}`") for theirs, ours in sorted(plain.items())]
    table = "".join(f"| {theirs} | {ours} |\n" for theirs, ours in rows)
    resolved = ", ".join(f"`{name}`" for name in sorted(framework.read))
    dropped, refused = reasons(framework.dropped), reasons(framework.refused)
    parts = [table, f"Translated by their value and other keys: {resolved}.\n"]
    parts += [f"Ignored, with a note:\n\n{dropped}"] if dropped else []
    parts += [f"Refused, unless the value is empty or false:\n\n{refused}"] if refused else []
    return "\n".join(parts)


def reasons(keys: dict[str, str]) -> str:
    """Return the keys grouped by reason, one list item per reason."""
    grouped: dict[str, list[str]] = {}
    for name, message in keys.items():
        grouped.setdefault(reason(message, name), []).append(f"`{name}`")
    return "".join(f"- {', '.join(sorted(names))}: {why}\n" for why, names in sorted(grouped.items()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
