"""The YAMLs that people bring from LLaMA-Factory's guides and examples: only model, data and step count are changed.

On the real model: FTLAB_GUIDES_MODEL=$HOME/.cache/ftlab/smollm2-135m pytest tests/unit/test_guides.py -k example
"""

import os
from pathlib import Path

import pytest

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import chat, export, train

# Keys as the examples of LLaMA-Factory 0.9 and the Qwen2 and Llama 3 guides have them, batch sizes and all.
TRAINING = """
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 0
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
LORA = "do_train: true\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\ntrust_remote_code: true\n"
SETS = "template: qwen\ncutoff_len: 2048\nmax_samples: 1000\n"
EXAMPLES = {
    "qwen2 lora sft guide": "stage: sft\n" + LORA + SETS + TRAINING + "val_size: 0.1\nper_device_eval_batch_size: 1\n"
    "eval_strategy: steps\neval_steps: 500\n",
    "llama3 lora sft guide": "stage: sft\n" + LORA + SETS + TRAINING + "lora_alpha: 16\nlora_dropout: 0\n"
    "eval_strategy: steps\neval_steps: 500\nval_size: 0.1\nload_best_model_at_end: true\n",
    "pretrain": "stage: pt\n" + LORA + SETS + TRAINING,
    "reward": "stage: rm\n" + LORA + SETS + TRAINING,
    "dpo": "stage: dpo\n" + LORA + SETS + TRAINING + "pref_beta: 0.1\npref_loss: sigmoid\n",
    "orpo": "stage: dpo\n" + LORA + SETS + TRAINING + "pref_beta: 0.1\npref_loss: orpo\n",
    "kto": "stage: kto\n" + LORA + SETS + TRAINING + "pref_beta: 0.1\n",
    "full": "stage: sft\ndo_train: true\nfinetuning_type: full\n" + SETS + TRAINING,
    "freeze": "stage: sft\ndo_train: true\nfinetuning_type: freeze\nfreeze_trainable_layers: 1\n" + SETS + TRAINING,
    "qlora bnb": "stage: sft\nquantization_bit: 4\nquantization_method: bnb\ndouble_quantization: true\n" + LORA + SETS
    + TRAINING,
    "dora": "stage: sft\nuse_dora: true\n" + LORA + SETS + TRAINING,
    "pissa": "stage: sft\npissa_init: true\npissa_iter: 16\npissa_convert: true\n" + LORA + SETS + TRAINING,
    "oft": "stage: sft\nfinetuning_type: oft\noft_block_size: 32\noft_target: all\n" + SETS + TRAINING,
    "oft bnb": "stage: sft\nquantization_bit: 4\nquantization_method: bnb\ndouble_quantization: false\n"
    "finetuning_type: oft\noft_block_size: 32\noft_target: all\n" + SETS + TRAINING,
    "llama pro": "stage: sft\nfinetuning_type: freeze\nfreeze_trainable_layers: 2\nfreeze_trainable_modules: all\n"
    "use_llama_pro: true\n" + SETS + TRAINING,
    "muon": "stage: sft\nfinetuning_type: full\nuse_muon: true\n" + SETS + TRAINING,
    "asft": "stage: sft\nfinetuning_type: full\nuse_asft_loss: true\nasft_alpha: 0.1\n" + SETS + TRAINING,
    "asft lora": "stage: sft\nuse_asft_loss: true\nasft_alpha: 0.1\n" + LORA + SETS + TRAINING,
    "eaft": "stage: sft\nfinetuning_type: full\nuse_eaft_loss: true\n" + SETS + TRAINING,
    "ray": "stage: sft\nray_num_workers: 4\n" + LORA + SETS + TRAINING,
    "lora plus": "stage: sft\nloraplus_lr_ratio: 16.0\n" + LORA + SETS + TRAINING,
}  # fmt: skip
ROWS = {"pretrain": "text", "reward": "preference", "dpo": "preference", "orpo": "preference", "kto": "kto"}
# What each of them says about keys that today's libraries no longer have.
SAID = ("overwrite_cache", "preprocessing_num_workers", "warmup_ratio")


@pytest.fixture
def written(tmp_path: Path, tiny_model_dir: Path, tiny_rows: Path):
    """Return a function that writes an example with only model, data, folder and step count changed."""

    def write(name: str) -> Path:
        rows = tiny_rows / f"{ROWS.get(name, 'sft')}.json"
        sets = f"{rows},{rows}" if "llama3" in name else rows
        model = os.environ.get("FTLAB_GUIDES_MODEL", tiny_model_dir)
        changed = f"model_name_or_path: {model}\ndataset: {sets}\noutput_dir: {tmp_path / 'saves'}\nmax_steps: 2\n"
        path = tmp_path / "example.yaml"
        path.write_text(changed + EXAMPLES[name])
        return path

    return write


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_to_the_end_and_says_what_changed(name, written, capsys):
    if "bnb" in name:
        pytest.importorskip("bitsandbytes")
    assert cli.main(["train", str(written(name))]) == 0
    said = capsys.readouterr().out
    for key in SAID:
        lines = [line for line in said.splitlines() if key in line]
        assert lines and all(len(line) < 200 for line in lines), key


def test_a_template_of_another_family_is_refused_with_the_right_one(written, tiny_model_dir):
    path = written("llama3 lora sft guide")
    path.write_text(path.read_text().replace("template: qwen", "template: llama3"))
    with pytest.raises(LabError, match=r"chatml|qwen") as error:
        train.train(recipes.load(path))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("quantization_method: hqq", "hqq"),
        ("quantization_method: eetq", "eetq"),
        ("use_unsloth: true", "use_unsloth"),
        ("use_galore: true", "use_galore"),
        ("use_badam: true", "use_badam"),
        ("use_adam_mini: true", "use_adam_mini"),
        ("infer_backend: vllm", "vllm"),
        ("stage: ppo", "ppo"),
    ],
)
def test_what_needs_something_else_is_named(written, line, named, capsys):
    path = written("qlora bnb")
    kept = [old for old in path.read_text().splitlines() if old.partition(":")[0] != line.partition(":")[0]]
    path.write_text("\n".join([*kept, line]) + "\n")
    assert cli.main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert named in said and "Traceback" not in said


def test_the_merge_and_chat_examples(written, tiny_model_dir, tmp_path):
    run = train.train(recipes.load(written("qwen2 lora sft guide")))
    merge = f"""
model_name_or_path: {tiny_model_dir}
adapter_name_or_path: {run.weights}
template: qwen
finetuning_type: lora
trust_remote_code: true
export_dir: {tmp_path / "merged"}
export_size: 2
export_device: cpu
export_legacy_format: false
"""
    (tmp_path / "merge.yaml").write_text(merge)
    assert export.export(recipes.load(tmp_path / "merge.yaml")).greedy_equal_share == 1
    (tmp_path / "chat.yaml").write_text("".join(f"{line}\n" for line in merge.strip().splitlines()[:5]))
    asked = recipes.load(tmp_path / "chat.yaml")
    model, tokenizer = chat.from_recipe(asked)
    assert isinstance(chat.reply(model, tokenizer, [{"role": "user", "content": "hi"}], max_new_tokens=3), str)
