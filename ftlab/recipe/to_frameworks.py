"""Convert a recipe to other frameworks: its keys under the names of LLaMA-Factory, swift and others.

Sources: the argument references of LLaMA-Factory, ms-swift 4, axolotl and the options of alpaca-lora's finetune.py.
"""

import inspect
import io
import json
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from ftlab.catalogue import hub_id
from ftlab.data import dataset_info
from ftlab.errors import LabError, fail, say
from ftlab.recipe import keys, text_rewards, to_script
from ftlab.recipe.frameworks.alpaca_lora import ALPACA_LORA
from ftlab.recipe.frameworks.axolotl import AXOLOTL, REWARDS_MODULE
from ftlab.recipe.frameworks.swift import SWIFT
from ftlab.recipe.frameworks.table import Framework, Values
from ftlab.recipe.frameworks.verl import VERL
from ftlab.recipe.keys import GROUPED, PREFERENCES, REWARDED, Recipe
from ftlab.recipe.library_args import lora_alpha
from ftlab.recipe.library_args import names as parts
from ftlab.recipe.read import OFT, decisive, plain
from ftlab.recipe.training_fields import FIELDS

# Always written: the frameworks' own defaults differ.
SHARED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "weight_decay",
    "num_train_epochs", "max_steps", "seed", "logging_steps",
)  # fmt: skip
# Keys that matter for one kind of run only.
ONLY = {
    "lora": {name for name in Recipe.model_fields if name.startswith(("lora_", "pissa")) or name in (
        "loraplus_lr_ratio", "use_rslora", "use_dora", "init_lora_weights")} - {"lora_target"},
    "layers": {"lora_target", "additional_target"},
    "freeze": {name for name in Recipe.model_fields if name.startswith("freeze_")},
    "quantized": {"quantization_type", "double_quantization"},
    "preferences": {"pref_beta"},
}  # fmt: skip
ALWAYS = {
    "model_name_or_path", "stage", "finetuning_type", "dataset", "output_dir", "cutoff_len", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_target", "pref_beta", "quantization_type", "double_quantization",
}  # fmt: skip
# Keys that the frameworks decide themselves, or that do not affect the weights.
SILENT = {
    "do_train", "plot_loss", "overwrite_output_dir", "dataset_dir", "quantization_method", "template",
    "allow_other_template",
}  # fmt: skip

# Words that PyYAML reads as booleans.
YES_OR_NO = ("yes", "no", "on", "off", "y", "n")
FRAMEWORKS = {"swift": SWIFT, "axolotl": AXOLOTL, "alpaca-lora": ALPACA_LORA}
DS_TYPES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
# Columns of dataset_info.json -> swift's names, for answers and labels that it would not find.
SWIFT_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "chosen": "output",
    "rejected": "rejected_response", "kto_tag": "label",
}  # fmt: skip
SWIFT_PLUGIN = '''

from swift.rewards import ORM, orms


def registered(reward):
    """Return a reward function in the form that swift calls: the answers are its column `solution`."""

    class Reward(ORM):
        def __call__(self, completions, solution, **_):
            return reward(completions, answer=solution)

    return Reward


orms.update({{reward.__name__: registered(reward) for reward in ({functions},)}})
'''
# The prompts of a recipe, without those that are too long, and the answers that reward functions are given: axolotl
# leaves rows of this form as they are.
AXOLOTL_ROWS = """for name, rows in (("train", train_dataset), ("validation", eval_dataset)):
    if rows is not None:
        rows = rows.map(lambda row: {{"messages": [*row["prompt"], {{"role": "assistant", "content": row["answer"]}}]}})
        rows.to_json(f"{folder}/{{name}}.jsonl", force_ascii=False)
"""
# ftlab's own keys; LLaMA-Factory has all others.
NOT_IN_LLAMA_FACTORY = {
    "dataset_substitutions", "device_map", "export_dtype", "export_gguf", "reward_funcs", "num_generations",
    "on_bad_rows", "max_memory", "shortcuts", "eval_figures", "tasks", "moe_aux_loss_per_layer", "peft_config",
    "init_lora_weights", "teacher_model", "lmbda", "beta", "seq_kd",
}  # fmt: skip


def show(recipe: Recipe, framework: str) -> str:
    """Return the run as a command or a file of another framework; keys without an equivalent are in comments.

    Args:
        framework: "llamafactory", "swift", "axolotl" or "alpaca-lora".
    Raises:
        LabError: the recipe trains nothing, or that framework has no such stage or tuning type.
    """
    if not recipe.dataset:
        raise fail("recipe_no_training", where="dataset", framework=framework)
    if recipe.training.get("eval_strategy", "no") != "no" and not (recipe.val_size or recipe.eval_dataset):
        raise fail("train_no_validation", where="eval_strategy")
    if framework == "llamafactory":
        return llamafactory(recipe)
    known = FRAMEWORKS[framework]
    if recipe.merges:
        raise fail("recipe_not_there", where="adapter_name_or_path", key=recipe.merges, framework=framework)
    for name, options in (("stage", known.stages), ("finetuning_type", known.tunings)):
        value = recipe.objective if name == "stage" else getattr(recipe, name)
        if value not in options:
            raise lacks(framework, name, value)
    return {"swift": swift, "axolotl": axolotl, "alpaca-lora": alpaca_lora}[framework](recipe)


def lacks(framework: str, name: str, value: str) -> LabError:
    """Build the error for a feature that a framework lacks."""
    return fail("recipe_not_there", where=name, key=f"{name}: {value}", framework=framework)


def relevant(recipe: Recipe) -> Values:
    """Return the relevant keys of this run: those that were set, and those whose defaults differ elsewhere."""
    explicit, own = plain(recipe), decisive(recipe) | {"output_dir": recipe.output_dir}
    values = {name: own[name] for name in Recipe.model_fields if name in ALWAYS and own.get(name) is not None}
    elsewhere = set(keys.OUTSIDE_THE_RUN) - {"output_dir", "default_system"} | SILENT
    values |= {name: value for name, value in explicit.items() if name not in elsewhere}
    # pt packs by default; the frameworks don't.
    values |= {"packing": True} if recipe.packs else {}
    for name in ("model_name_or_path", "ref_model", "teacher_model"):
        values |= {name: hub_id(values[name])} if name in values else {}
    values |= {"stage": recipe.objective, "lora_alpha": lora_alpha(recipe)}
    shared = {name: recipe.training.get(name, FIELDS[name].default) for name in SHARED}
    shared["learning_rate"] = recipe.training.get("learning_rate", 5e-5)
    shared["logging_steps"] = recipe.training.get("logging_steps", 1)
    if shared["max_steps"] > 0 and "num_train_epochs" not in recipe.training:
        del shared["num_train_epochs"]
    else:
        shared = {name: value for name, value in shared.items() if name != "max_steps" or value > 0}
    kind = {
        "lora": recipe.finetuning_type == "lora",
        "layers": recipe.finetuning_type in ("lora", *keys.LAYER_METHODS),
        "freeze": recipe.finetuning_type == "freeze",
        "quantized": recipe.quantization_bit == 4,
        "preferences": recipe.objective in PREFERENCES + REWARDED,
    }
    if 0 < values.get("warmup_steps", 0) < 1:
        # Their transformers may be older, which takes steps as integers only.
        values["warmup_ratio"] = values.pop("warmup_steps")
    foreign = {name for group, is_so in kind.items() if not is_so for name in ONLY[group]}
    values = {name: str(value) if hasattr(value, "value") else value for name, value in (values | shared).items()}
    return {name: value for name, value in values.items() if name not in foreign}


def renamed(values: Values, framework: Framework) -> tuple[Values, Values]:
    """Return (keys under the framework's names, keys that it does not have)."""
    theirs, left = {}, {}
    for name, value in values.items():
        own = name in keys.TRAINING_HINTS and framework.trainer and (not framework.fields or name in framework.fields)
        new = framework.names.get(name, name if own or (name == "warmup_ratio" and framework.trainer) else None)
        written = framework.values[name](value) if name in framework.values else value
        if new is None or written is None:
            left[name] = value
        else:
            theirs[new] = written
    return theirs, left


def files(recipe: Recipe, dataset: str | None) -> list[str]:
    """Return the files of data sets that a recipe names."""
    paths = []
    for name in parts(dataset or ""):
        _, path = dataset_info.find(name, Path(recipe.dataset_dir))
        paths.append(str(path or name))
    return paths


def comments(left: Values) -> str:
    """Return a comment line per key that has no equivalent."""
    return "".join(comment(say("show_no_equivalent", key=name, value=value)) for name, value in left.items())


def comment(text: str) -> str:
    """Return a text as a line of comment, as shells and YAML write it."""
    return f"# {text}\n"


def dumps(values: Values) -> str:
    """Return values as YAML, in their order."""
    text = io.StringIO()
    yaml = YAML(pure=True)
    yaml.default_flow_style = False
    yaml.dump(quote_booleans(values), text)
    return text.getvalue()


def quote_booleans(value: Any) -> Any:
    """Return a value with quotes around words that YAML 1.1, which the frameworks read, takes as booleans."""
    if isinstance(value, dict):
        return {name: quote_booleans(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [quote_booleans(inner) for inner in value]
    return SingleQuotedScalarString(value) if isinstance(value, str) and value.lower() in YES_OR_NO else value


def llamafactory(recipe: Recipe) -> str:
    """Return LLaMA-Factory's YAML: the same keys. Its data sets are those of a dataset_info.json."""
    if recipe.objective in (*GROUPED, "gkd"):
        raise lacks("llamafactory", "stage", recipe.objective)
    if recipe.reward_funcs:
        # Its PPO takes rewards from a model only.
        raise lacks("llamafactory", "reward_funcs", recipe.reward_funcs)
    outside = {name: value for name, value in plain(recipe).items() if name in keys.OUTSIDE_THE_RUN}
    values = relevant(recipe) | outside | {"do_train": True, "dataset_dir": recipe.dataset_dir}
    values |= {"template": recipe.template} if recipe.template else {}
    if values["stage"] in ("orpo", "simpo"):
        values |= {"stage": "dpo", "pref_loss": recipe.objective}
    values |= {"resize_vocab": True} if recipe.add_tokens else {}
    if recipe.finetuning_type not in ("lora", "full", "freeze", "oft"):
        raise lacks("llamafactory", "finetuning_type", recipe.finetuning_type)
    if recipe.finetuning_type == "oft":
        values |= oft(recipe)
        values = {name: value for name, value in values.items() if name not in ("lora_target", "peft_config")}
    left = {name: values.pop(name) for name in NOT_IN_LLAMA_FACTORY if name in values}
    chances, validating = parts(recipe.interleave_probs or ""), parts(recipe.eval_dataset or "")
    if chances and validating and len(chances) != len(validating):
        left |= unmixed(values)
    return "# llamafactory-cli train FILE\n" + comments(left) + dumps(values)


def unmixed(values: Values) -> Values:
    """Remove validation keys from LLaMA-Factory's, and return them: its mixture probabilities apply to both sets.

    Raises:
        LabError: the run depends on the validation.
    """
    for name in ("early_stopping_steps", "load_best_model_at_end"):
        if values.get(name):
            raise lacks("llamafactory", name, say("lacks_mixture", value=values[name]))
    return {name: values.pop(name) for name in list(values) if name.startswith("eval_") or name == "eval_dataset"}


def oft(recipe: Recipe) -> Values:
    """Return LLaMA-Factory's keys of OFT.

    Raises:
        LabError: LLaMA-Factory has no key for a field of `peft_config`.
    """
    theirs = {field: key for key, (field, _) in OFT.items()}
    if unknown := recipe.peft_config.keys() - theirs.keys():
        raise lacks("llamafactory", "peft_config", ", ".join(sorted(unknown)))
    return {"oft_target": recipe.lora_target} | {theirs[name]: value for name, value in recipe.peft_config.items()}


def swift(recipe: Recipe) -> str:
    """Return ms-swift's command."""
    theirs, left = renamed(relevant(recipe), SWIFT)
    verb = {"sft": "sft", "pt": "pt"}.get(recipe.objective, "rlhf")
    if verb != "rlhf":
        theirs.pop("rlhf_type")
    if recipe.quantization_bit:
        theirs["quant_method"] = "bnb"
    if recipe.finetuning_type == "full":
        # By default swift keeps whole weights in the model's own dtype.
        theirs["torch_dtype"] = "bfloat16" if left.pop("pure_bf16", None) else "float32"
        if theirs["torch_dtype"] == "float32" and not {"bf16", "fp16"} & theirs.keys():
            theirs |= {"bf16": True, "fp16": False}
    if recipe.train_on_prompt or recipe.mask_history:
        theirs["loss_scale"] = "all" if recipe.train_on_prompt else "last_round"
        left = {name: value for name, value in left.items() if name not in ("train_on_prompt", "mask_history")}
    few = f"#{recipe.max_samples}" if left.pop("max_samples", None) else ""
    for name, sets in (("dataset", recipe.dataset), ("val_dataset", recipe.eval_dataset)):
        if sets:
            theirs[name] = [path + few for path in files(recipe, sets)]
    theirs.setdefault("split_dataset_ratio", 0)
    # swift's default is 0.95.
    theirs.setdefault("adam_beta2", FIELDS["adam_beta2"].default)
    if recipe.objective == "simpo":
        # By default swift adds an SFT loss.
        theirs["cpo_alpha"] = 0.0
    if columns := swift_columns(recipe):
        theirs["columns"] = json.dumps(columns)
    if recipe.objective == "gkd":
        return swift_distillation(recipe, theirs, left)
    if recipe.objective != "grpo":
        return comments(left) + command(f"swift {verb}", theirs)
    theirs |= swift_rewards(recipe)
    left = {name: value for name, value in left.items() if name not in theirs}
    functions = ", ".join(theirs["reward_funcs"])
    source = inspect.getsource(text_rewards) + SWIFT_PLUGIN.format(functions=functions)
    written = heredoc(f"cat > {theirs['external_plugins']}", source)
    return comments(left) + written + command(f"swift {verb}", theirs)


def swift_distillation(recipe: Recipe, theirs: Values, left: Values) -> str:
    """Return swift's command of a distillation.

    Raises:
        LabError: generation by the teacher, which swift lacks.
    """
    if recipe.seq_kd:
        raise lacks("swift", "seq_kd", "true")
    theirs |= {"max_completion_length": recipe.max_new_tokens, "temperature": recipe.temperature}
    if recipe.model_revision != "main":
        theirs["teacher_model_revision"] = recipe.model_revision
    note = comment("temperature: " + say("why_swift_divides_logits")) if recipe.temperature != 1 else ""
    return note + comments(left) + command("swift rlhf", theirs)


def swift_rewards(recipe: Recipe) -> Values:
    """Return swift's settings for generating and scoring completions and for the loss, as in TRL.

    Raises:
        LabError: a reward model.
    """
    if recipe.reward_model:
        raise lacks("swift", "reward_model", recipe.reward_model)
    return {
        "num_generations": recipe.num_generations,
        "max_completion_length": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "loss_type": "dapo",
        "reward_funcs": parts(recipe.reward_funcs or ""),
        "external_plugins": "swift_rewards.py",
    }


def heredoc(start: str, text: str) -> str:
    """Return a shell command with a text on its standard input."""
    return f"{start} <<'END'\n{text.rstrip()}\nEND\n\n"


def swift_columns(recipe: Recipe) -> dict[str, str]:
    """Return column -> swift's name, for columns that swift does not read under their own names.

    Raises:
        LabError: pairs of turns, which swift reads only as whole conversations.
    """
    mapping: dict[str, str] = {}
    for name in parts(",".join(filter(None, (recipe.dataset, recipe.eval_dataset)))):
        entry, _ = dataset_info.find(name, Path(recipe.dataset_dir))
        columns = entry.all_columns()
        if "rejected" in columns and entry.formatting != "alpaca":
            raise lacks("swift", "dataset", say("lacks_pairs", name=name))
        if recipe.objective == "grpo" and entry.formatting != "alpaca":
            raise lacks("swift", "dataset", say("lacks_inner_answers", name=name))
        names = {"prompt": "response"} if recipe.objective == "pt" else SWIFT_COLUMNS
        # The columns that a reward function gets in addition to the completions.
        names = names | {"response": "solution"} if recipe.objective == "grpo" else names
        mapping |= {columns[key]: theirs for key, theirs in names.items() if key in columns}
    # swift itself calls an answer `text`.
    return {column: theirs for column, theirs in mapping.items() if column not in (theirs, "text")}


def axolotl(recipe: Recipe) -> str:
    """Return axolotl's YAML."""
    theirs, left = renamed(relevant(recipe), AXOLOTL)
    for name, sets in (("datasets", recipe.dataset), ("test_datasets", recipe.eval_dataset)):
        if sets and recipe.objective != "grpo":
            theirs[name] = [axolotl_set(recipe, one) for one in parts(sets)]
    theirs |= {"rl": recipe.objective} if recipe.objective in PREFERENCES else {}
    # By default axolotl adds an SFT loss.
    theirs |= {"cpo_alpha": 0.0} if recipe.objective == "simpo" else {}
    theirs |= {"reward_model": True} if recipe.objective == "rm" else {}
    if recipe.objective not in (*PREFERENCES, "grpo"):
        theirs.pop("rl")
    if theirs.pop("load_in_4bit", None):
        theirs |= {f"load_in_{recipe.quantization_bit}bit": True}
    if recipe.finetuning_type == "full":
        theirs.pop("adapter")
    elif recipe.quantization_bit == 4:
        theirs["adapter"] = "qlora"
    if theirs.get("lora_target_modules") == "all-linear":
        del theirs["lora_target_modules"]
        theirs["lora_target_linear"] = True
    if not {"warmup_steps", "warmup_ratio"} & theirs.keys():
        # Without either, axolotl warms up for 3% of all steps.
        theirs["warmup_steps"] = 0
    # axolotl uses nf4 with double quantization, ftlab's default.
    usual = {"quantization_type": "nf4", "double_quantization": True}
    left = {name: value for name, value in left.items() if usual.get(name) != value}
    if recipe.objective == "grpo":
        return axolotl_rewards(recipe, theirs, left)
    return "# axolotl train FILE\n" + axolotl_rows(recipe) + comments(left) + dumps(theirs)


def axolotl_rewards(recipe: Recipe, theirs: Values, left: Values) -> str:
    """Return a shell script: the rows, the reward functions in a module, axolotl's YAML, its command.

    Raises:
        LabError: a reward model, for which axolotl accepts hub ids only.
    """
    if recipe.reward_model:
        raise lacks("axolotl", "reward_model", recipe.reward_model)
    folder = f"{Path(recipe.output_dir or 'run').name}-axolotl"
    for name, rows, exist in (
        ("datasets", "train", True),
        ("test_datasets", "validation", bool(recipe.eval_dataset or recipe.val_size)),
    ):
        theirs.pop(name, None)
        theirs |= (
            {name: [{"path": f"{folder}/{rows}.jsonl", "ds_type": "json", "type": "passthrough"}]} if exist else {}
        )
    theirs.pop("val_set_size", None)
    theirs["trl"] = {
        "beta": theirs.pop("rl_beta"),
        "num_generations": recipe.num_generations,
        "max_completion_length": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "reward_funcs": [f"{REWARDS_MODULE}.{name}" for name in parts(recipe.reward_funcs or "")],
    }
    left = {name: value for name, value in left.items() if name not in (*to_script.DATA, "num_generations")}
    config = shlex.quote(f"{folder}/config.yml")
    return (
        comment(say("show_axolotl_files"))
        + comments(left)
        + f"mkdir -p {shlex.quote(folder)}\n\n"
        + heredoc(f"cat > {REWARDS_MODULE}.py", inspect.getsource(text_rewards))
        + heredoc("python3 -", to_script.rows_written(recipe, AXOLOTL_ROWS.format(folder=folder)))
        + heredoc(f"cat > {config}", dumps(theirs))
        + f"axolotl train {config}\n"
    )


def axolotl_set(recipe: Recipe, name: str) -> Values:
    """Return how axolotl reads one data set.

    Raises:
        LabError: a reward model, KTO or ORPO, for which axolotl needs rows in a format that ftlab does not read.
    """
    entry, path = dataset_info.find(name, Path(recipe.dataset_dir))
    kind = DS_TYPES.get(Path(str(path or "")).suffix)
    read: Values = {"path": str(path or name)} | ({"ds_type": kind} if kind else {})
    columns, tags = entry.all_columns(), entry.all_tags()
    if recipe.objective == "pt":
        return read | {"type": "completion", "field": columns["prompt"]}
    if recipe.objective in ("rm", "kto", "orpo"):
        raise lacks("axolotl", "dataset", say("lacks_rows", name=name, stage=recipe.objective))
    roles = {"role": tags.get("role_tag"), "content": tags.get("content_tag")}
    turns = {"field_messages": columns.get("messages"), "message_property_mappings": roles}
    if recipe.objective in PREFERENCES:
        # axolotl reads a prompt that is a text as one user turn.
        fields = turns if entry.formatting != "alpaca" else {"field_messages": columns["prompt"]}
        sides = {"field_chosen": columns["chosen"], "field_rejected": columns["rejected"]}
        return read | {"type": "chat_template.default"} | fields | sides
    return read | ({"type": "alpaca"} if entry.formatting == "alpaca" else {"type": "chat_template"} | turns)


def axolotl_rows(recipe: Recipe) -> str:
    """Return a comment line if axolotl renders the same rows as a different text."""
    sets = parts(",".join(filter(None, (recipe.dataset, recipe.eval_dataset))))
    formats = {dataset_info.find(name, Path(recipe.dataset_dir))[0].formatting for name in sets}
    if "alpaca" not in formats or recipe.objective == "pt":
        return ""
    if recipe.objective == "sft":
        return comment(say("show_alpaca_rows"))
    return comment(say("show_alpaca_input"))


def alpaca_lora(recipe: Recipe) -> str:
    """Return the command of alpaca-lora's finetune.py."""
    values = relevant(recipe)
    theirs, left = renamed(values, ALPACA_LORA)
    sets = files(recipe, recipe.dataset)
    if len(sets) != 1:
        raise lacks("alpaca-lora", "dataset", recipe.dataset or "none")
    theirs["data_path"] = sets[0]
    accumulated = values["gradient_accumulation_steps"]
    theirs["batch_size"] = values["per_device_train_batch_size"] * accumulated
    theirs.setdefault("val_set_size", 0)
    theirs.setdefault("train_on_inputs", False)
    if recipe.lora_target == "all":
        theirs["lora_target_modules"] = "all-linear"
    # What that script does anyway, or what does not affect the weights.
    fixed = {"stage": "sft", "finetuning_type": "lora", "gradient_accumulation_steps": accumulated, "seed": 42}
    fixed |= {"weight_decay": 0.0, "lr_scheduler_type": "linear", "logging_steps": values["logging_steps"]}
    left = {name: value for name, value in left.items() if fixed.get(name) != value}
    return comment(say("show_alpaca_lora")) + comments(left) + command("python finetune.py", theirs)


def command(start: str, values: Values) -> str:
    """Return a shell command with one option per line."""
    lines = [start]
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        written = [str(part).lower() if isinstance(part, bool) else str(part) for part in items]
        lines.append(f"    --{name} {shlex.join(written)}")
    return " \\\n".join(lines) + "\n"


def key_table() -> str:
    """Return the names of every key of a recipe in each framework as a Markdown table."""
    known = FRAMEWORKS | {"verl": VERL}
    head = ["recipe", "llamafactory", *known]
    rows = []
    for name in Recipe.model_fields:
        if name in (*keys.OUTSIDE_THE_RUN, "training", *SILENT) and name not in ("output_dir", "default_system"):
            continue
        theirs = [f"`{one.names[name]}`" if name in one.names else "" for one in known.values()]
        rows.append([f"`{name}`", "" if name in NOT_IN_LLAMA_FACTORY else f"`{name}`", *theirs])
    lines = [" | ".join(cells) for cells in [head, ["---"] * len(head), *rows]]
    return "".join(f"| {line} |\n" for line in lines)
