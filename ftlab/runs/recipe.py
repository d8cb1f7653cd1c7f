"""The recipe: one run as plain keys, in LLaMA-Factory's vocabulary, and the library objects it becomes."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from transformers import TrainingArguments
from trl import SFTConfig

from ftlab import device
from ftlab.errors import LabError, fail

MAX_RECIPE_BYTES = 100_000
# Keys that this stack no longer has.
RENAMED = {"warmup_ratio": "warmup_steps", "preprocessing_num_workers": "dataset_num_proc"}
DROPPED = {"overwrite_output_dir", "overwrite_cache", "save_safetensors"}
TRAINING_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init} | {"dataset_num_proc"}


class Recipe(BaseModel):
    """One run. Keys under their LLaMA-Factory names; `training` holds the TrainingArguments fields given as keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    model_name_or_path: str = Field(description="catalogue name, local folder or hub id")
    stage: Literal["sft"] = Field("sft", description="what is trained: sft")
    finetuning_type: Literal["lora", "full"] = Field("lora", description="lora: thin matrices beside the weights")
    do_train: bool = Field(True, description="train; LLaMA-Factory asks for it, ftlab train always does")
    dataset: str = Field(description="registry names or paths, separated by commas")
    dataset_dir: str = Field("data", description="the folder of dataset_info.json")
    dataset_substitutions: dict[str, str] = Field({}, description="values for {{name}} placeholders in the data")
    max_samples: int | None = Field(None, ge=1, description="rows to take of each set")
    val_size: float = Field(0.0, ge=0, description="share (below 1) or number of rows held out for validation")
    cutoff_len: int = Field(1024, ge=8, description="tokens kept of each row, from its start")
    train_on_prompt: bool = Field(False, description="the loss looks at the prompt too")
    mask_history: bool = Field(False, description="of several answers only the last is trained on")
    lora_rank: int = Field(8, ge=1, description="r: how thin the two matrices are")
    lora_alpha: int | None = Field(None, ge=1, description="their product is scaled by lora_alpha / r; None: 2 r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of inputs of the thin matrices set to 0")
    lora_target: str = Field("all", description="all, or layer names separated by commas")
    output_dir: str = Field(description="the run folder")
    plot_loss: bool = Field(True, description="write loss.png")
    training: dict[str, Any] = Field({}, description="fields of transformers.TrainingArguments")

    def peft_config(self) -> LoraConfig | None:
        """Return the LoraConfig, None for a full fine-tune."""
        if self.finetuning_type == "full":
            return None
        target = "all-linear" if self.lora_target == "all" else [name.strip() for name in self.lora_target.split(",")]
        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha or 2 * self.lora_rank,
            lora_dropout=self.lora_dropout,
            target_modules=target,
            task_type="CAUSAL_LM",
        )

    def training_args(self, machine: device.Machine) -> SFTConfig:
        """Return the SFTConfig: what this machine decides, then what the recipe says.

        Raises:
            LabError: a value that transformers refuses.
        """
        settings: dict[str, Any] = {"report_to": "none", "logging_steps": 1, "save_strategy": "no"}
        settings |= device.training_arguments(machine) | self.training
        if machine.accelerator == "cpu":
            # A CPU autocasts nothing: the model is loaded in the machine's own dtype.
            settings |= {"bf16": False, "fp16": False}
        # A loss of nan must be seen as nan, not logged as 0.
        settings |= {"logging_nan_inf_filter": False}
        try:
            return SFTConfig(output_dir=self.output_dir, max_length=self.cutoff_len, **settings)
        except (TypeError, ValueError) as error:
            raise fail("recipe_training", reason=str(error).splitlines()[0]) from None


def load(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file or a dict, with `key=value` overrides.

    Raises:
        LabError: unreadable YAML, an unknown key (with the nearest), a value of the wrong type; the line is named.
    """
    if isinstance(source, dict):
        values, places, place = dict(source), {}, ""
    else:
        place = str(source)
        values, lines = read_yaml(Path(source))
        places = {key: f"{place}:{line}" for key, line in lines.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise fail("recipe_override", where=override)
        values[key], places[key] = parse(text, override), override
    return build(values, places, place)


def build(values: dict[str, Any], places: dict[str, str], place: str) -> Recipe:
    """Sort keys into recipe keys and training fields, and check both."""
    own, training = {}, {}
    for key, value in translate(values).items():
        if key in Recipe.model_fields:
            own[key] = value
        elif key in TRAINING_FIELDS:
            training[key] = value
        else:
            near = difflib.get_close_matches(str(key), [*Recipe.model_fields, *TRAINING_FIELDS], n=3, cutoff=0.5)
            nearest = ", ".join(near or ["model_name_or_path"])
            raise fail("recipe_unknown_key", where=places.get(key, place), key=key, nearest=nearest)
    try:
        return Recipe(**own, training=training)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0])
        if problem["type"] == "missing":
            raise fail("recipe_missing_key", where=place, key=key) from None
        value, where = repr(problem["input"])[:80], places.get(key, place)
        raise fail("recipe_value", where=where, key=key, value=value, reason=problem["msg"]) from None


def translate(values: dict[str, Any]) -> dict[str, Any]:
    """Replace keys that newer libraries dropped, and say each."""
    kept = {key: value for key, value in values.items() if key not in RENAMED and key not in DROPPED}
    for key, value in values.items():
        if key in RENAMED:
            kept.setdefault(RENAMED[key], value)
            print(f"{key}: {value} is now {RENAMED[key]}: {value}")
        elif key in DROPPED:
            print(f"{key}: {value} is dropped: this stack has no such setting")
    if isinstance(kept.get("val_size"), int):
        kept["val_size"] = float(kept["val_size"])
    return kept


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keys of a YAML file and the line of each.

    YAML 1.2: `1e-4` is a number and `no` a string; a repeated key, an alias or a tag is an error.
    """
    if not path.is_file():
        raise fail("recipe_no_file", where=str(path))
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise fail("recipe_too_big", where=str(path), limit=MAX_RECIPE_BYTES // 1000)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise fail("recipe_yaml", where=str(path), reason="it is not UTF-8") from None
    loaded = parse(text, str(path))
    if not isinstance(loaded, dict):
        raise fail("recipe_yaml", where=str(path), reason="it is no list of `key: value` lines")
    keys = YAML(typ="safe", pure=True).compose(text).value
    return loaded, {key.value: key.start_mark.line + 1 for key, _ in keys}


def parse(text: str, where: str) -> Any:
    """Return the plain value of a piece of YAML; aliases and tags are refused."""
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if type(event).__name__ == "AliasEvent" or getattr(event, "tag", None):
                place = f"{where}:{event.start_mark.line + 1}"
                raise fail("recipe_yaml", where=place, reason="aliases and tags have no place in a recipe")
        return YAML(typ="safe", pure=True).load(text)
    except LabError:
        raise
    except DuplicateKeyError as error:
        place = f"{where}:{error.problem_mark.line + 1}"
        raise fail("recipe_yaml", where=place, reason="a key stands there twice") from None
    except MarkedYAMLError as error:
        place = f"{where}:{error.problem_mark.line + 1}" if error.problem_mark else where
        raise fail("recipe_yaml", where=place, reason=str(error.problem)) from None
    except (YAMLError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as error:
        # ruamel's own constructors fail in these ways on numbers and dates that are none.
        raise fail("recipe_yaml", where=where, reason=str(error)[:120]) from None


def write(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, its training fields beside the others, so that `load` reads the same recipe back."""
    values = recipe.model_dump(exclude_defaults=True)
    values |= values.pop("training", {})
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
