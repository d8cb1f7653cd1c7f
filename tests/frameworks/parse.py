"""Give files to the real parser of a framework, with that framework's own Python: parse.py FRAMEWORK FILE...

Prints a JSON object: file -> "" where the parser takes it, else its first complaint.
"""

import dataclasses
import importlib.util
import json
import shlex
import sys
from pathlib import Path

import yaml


def axolotl(text: str) -> str:
    """Return what axolotl's schema says of a YAML file; a key that it does not have is a complaint."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    # A script writes rows, rewards and its YAML.
    values = yaml.safe_load(text.rpartition("\nEND\n")[0].rpartition("<<'END'\n")[2] or text)
    unknown = sorted(set(values) - set(AxolotlInputConfig.model_fields))
    if unknown:
        return f"unknown keys {unknown}"
    AxolotlInputConfig(**values)
    return ""


def swift(text: str) -> str:
    """Return what swift's parser says of a command, without loading the model that its arguments name."""
    from swift.arguments import PretrainArguments, RLHFArguments, SftArguments
    from transformers import HfArgumentParser

    # Its reward functions come before the command.
    words = shlex.split(text.rpartition("\nEND\n")[2].replace("\\\n", " "), comments=True)
    kind = {"sft": SftArguments, "pt": PretrainArguments, "rlhf": RLHFArguments}[words[1]]
    bare = type(kind.__name__, (kind,), {"__post_init__": lambda self: None, "__module__": kind.__module__})
    _, left = HfArgumentParser(dataclasses.dataclass(bare)).parse_args_into_dataclasses(
        words[2:], return_remaining_strings=True
    )
    return f"unknown options {left}" if left else ""


def llamafactory(text: str) -> str:
    """Return what LLaMA-Factory's parser says of a YAML file."""
    from llamafactory.hparams.parser import get_train_args

    get_train_args(yaml.safe_load(text) | {"use_cpu": True, "bf16": False, "fp16": False})
    return ""


def verl(text: str) -> str:
    """Return what hydra says of verl's options, beside the configuration that the package ships."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    # Without importing it: that would ask for vLLM and Ray.
    folder = Path(str(importlib.util.find_spec("verl").origin)).parent / "trainer" / "config"
    command = text.rpartition("\nEND\n")[2]
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    with initialize_config_dir(str(folder), version_base=None):
        found = compose("ppo_trainer", words[words.index("verl.trainer.main_ppo") + 1 :])
    OmegaConf.to_container(found.actor_rollout_ref.actor, resolve=False)
    return ""


def main() -> None:
    """Print the verdict on each file."""
    verdicts = {}
    for path in sys.argv[2:]:
        try:
            verdicts[path] = globals()[sys.argv[1]](Path(path).read_text(encoding="utf-8"))
        except (Exception, SystemExit) as error:
            verdicts[path] = f"{type(error).__name__}: {error}"[:400] or "refused"
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
