"""What `ftlab recipe show` prints, against the real parsers: python -m tests.frameworks.check FRAMEWORK PYTHON.

PYTHON is that of an environment with the framework; `make frameworks` makes them.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import to_frameworks, to_verl

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "recipes").glob("*.yaml"))
# Changes to a template, each of them another file for the parser.
CHANGES: tuple[tuple[str, ...], ...] = (
    (),
    ("save_strategy=no", "warmup_steps=0.1"),
    ("finetuning_type=full", "optim=adamw_torch", "max_grad_norm=0.5"),
    ("use_dora=true", "use_rslora=true", "lora_target=q_proj,v_proj", "additional_target=lm_head"),
    ("quantization_bit=4", "flash_attn=sdpa", "neftune_noise_alpha=5", "bf16=true"),
    ("max_samples=8", "eval_strategy=steps", "eval_steps=5", "save_total_limit=2"),
)


def shown(framework: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Write every template with every change for a framework; return the files, and what ftlab itself refuses."""
    files, refused = [], []
    for template, (number, changes) in itertools.product(TEMPLATES, enumerate(CHANGES)):
        try:
            made = recipes.read(template, changes)[0]
            text = to_verl.script(made) if framework == "verl" else to_frameworks.show(made, framework)
        except LabError as error:
            refused.append(f"{template.stem} {' '.join(changes)}: {error.what}")
            continue
        files.append(folder / f"{template.stem}-{number}.txt")
        files[-1].write_text(text, encoding="utf-8")
    return files, refused


def main() -> int:
    """Print how many files the parser takes and why not the others; return 1 if it refuses one."""
    framework, python = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        files, refused = shown(framework, Path(folder))
        asked = [python, str(ROOT / "tests" / "frameworks" / "parse.py"), framework, *map(str, files)]
        answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verdicts = json.loads(answer.splitlines()[-1])
    wrong = {Path(path).stem: verdict for path, verdict in verdicts.items() if verdict}
    for name, verdict in wrong.items():
        print(f"{framework} refuses {name}: {verdict}")
    print(f"{framework}: {len(verdicts) - len(wrong)} of {len(verdicts)} accepted; {len(refused)} refused by ftlab:")
    print("".join(f"  {line}\n" for line in refused), end="")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
