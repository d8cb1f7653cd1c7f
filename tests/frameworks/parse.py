"""Give files to the real parser of a framework, with that framework's own Python: parse.py FRAMEWORK FILE...

Prints a JSON object: file -> "" where the parser takes it, else its first complaint.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import yaml


def axolotl(text: str) -> str:
    """Return what axolotl's schema says of a YAML file; a key that it does not have is a complaint."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    values = yaml.safe_load(text)
    unknown = sorted(set(values) - set(AxolotlInputConfig.model_fields))
    if unknown:
        return f"unknown keys {unknown}"
    AxolotlInputConfig(**values)
    return ""


def swift(text: str) -> str:
    """Return what swift's parser says of a command, without loading the model that its arguments name."""
    from swift.arguments import PretrainArguments, RLHFArguments, SftArguments
    from transformers import HfArgumentParser

    words = shlex.split(text.replace("\\\n", " "), comments=True)
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
