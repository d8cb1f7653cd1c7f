"""A recipe in, a run folder out: what is trained, what is left behind, what is reused and what is refused."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from ftlab import saved_weights
from ftlab.cpu import lora
from ftlab.data import check
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import build, callbacks, folder, rewards, train


class Weights(TrainerCallback):
    """Keep the weights from before the training, and say which changed."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.model = model
        self.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def changed(self) -> set[str]:
        return {name for name, weight in self.model.named_parameters() if not torch.equal(weight, self.before[name])}

    def trainable(self) -> set[str]:
        return {name for name, weight in self.model.named_parameters() if weight.requires_grad}


def run(values, **overrides) -> tuple[train.Run, Weights]:
    weights = Weights()
    return train.train(recipes.load(values | overrides), callbacks=[weights]), weights


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_a_run_folder_has_what_it_should(tiny_recipe):
    tiny_recipe["plot_loss"] = True
    done, weights = run(tiny_recipe)
    names = {path.name for path in done.folder.iterdir()}
    assert {
        "recipe.yaml",
        "manifest.json",
        "train_log.jsonl",
        "metrics.json",
        "loss.png",
        "adapter",
        "README.md",
    } <= names
    assert {f"checkpoint-{step}" for step in (2, 4, 6)} <= names
    assert not done.reused and done.metrics["train_loss"] == pytest.approx(
        sum(row["loss"] for row in rows(done.folder)) / 6
    )
    assert [row["step"] for row in rows(done.folder)] == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["finished"] and {"run_id", "recipe", "data", "model", "versions"} <= set(manifest)
    assert recipes.load(done.folder / "recipe.yaml") == recipes.load(tiny_recipe)
    assert not list(done.folder.rglob("*.bin")), "a pickle nobody reads"
    assert weights.trainable() == weights.changed()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"finetuning_type": "full"},
        {"finetuning_type": "full", "pure_bf16": True},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp"},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_target": "q_proj,v_proj"},
        {"loraplus_lr_ratio": 16.0},
        {"neftune_noise_alpha": 5.0},
        {"packing": True, "cutoff_len": 256},
        {"train_on_prompt": True},
        {"stage": "pt", "dataset": "text"},
        {"stage": "rm", "dataset": "preference"},
        {"stage": "rm", "dataset": "preference", "finetuning_type": "freeze"},
        {"stage": "dpo", "dataset": "preference"},
        {"stage": "dpo", "dataset": "preference", "pref_loss": "ipo", "pref_ftx": 0.1},
        {"stage": "dpo", "dataset": "preference", "finetuning_type": "full"},
        {"stage": "kto", "dataset": "kto"},
        {"stage": "orpo", "dataset": "preference"},
        {"stage": "simpo", "dataset": "preference"},
        {"stage": "dpo", "pref_loss": "simpo", "dataset": "preference"},
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items()) or "lora",
)
def test_every_trainable_weight_changes_and_no_frozen_one(tiny_recipe, tiny_rows, keys):
    keys = keys | ({"dataset": str(tiny_rows / f"{keys['dataset']}.json")} if "dataset" in keys else {})
    done, weights = run(tiny_recipe, max_steps=3, **keys)
    assert weights.trainable() and weights.changed() == weights.trainable()
    assert all(torch.isfinite(row["loss"] * torch.ones(1)).all() for row in rows(done.folder))
    assert list(done.weights.glob("*.safetensors"))


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "gkd", "grpo", "rloo", "ppo"])
def test_dropout_that_a_trainer_switches_off_is_said(tiny_recipe, tiny_rows, tiny_model_dir, stage):
    data = {"pt": "text", "kto": "kto"} | dict.fromkeys(("rm", "dpo", "orpo", "simpo"), "preference")
    more = {"gkd": {"teacher_model": str(tiny_model_dir)}, "grpo": {"num_generations": 2}}
    more |= {"rloo": {"num_generations": 2}, "ppo": {}}
    if stage in ("grpo", "rloo", "ppo"):
        more[stage] |= {"reward_funcs": "exact_answer", "per_device_train_batch_size": 2}
    given = {"stage": stage, "dataset": str(tiny_rows / f"{data.get(stage, 'sft')}.json"), "lora_dropout": 0.25}
    keys = tiny_recipe | given | more.get(stage, {}) | {"max_steps": 1, "max_new_tokens": 4}
    recipe, notes = recipes.read(keys)
    weights = Weights()
    train.train(recipe, callbacks=[weights])
    layers = [module for name, module in weights.model.named_modules() if "lora_dropout" in name]
    rates = {module.p for module in layers if isinstance(module, torch.nn.Dropout)}
    said = any("lora_dropout: 0.25 has no effect in this run" in note for note in notes)
    assert rates == {0.0 if said else 0.25}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("stage", ["grpo", "rloo", "ppo"])
def test_prompts_keep_their_order_without_shuffling(tiny_recipe, tiny_rows, monkeypatch, stage, kept):
    asked = []

    def reward(prompts, **_):
        asked.extend(prompt[-1]["content"] for prompt in prompts)
        return [0.0] * len(prompts)

    monkeypatch.setattr(rewards, "functions", lambda *_: [reward])
    given = {"stage": stage, "dataset": str(tiny_rows / "sft.json"), "reward_funcs": "exact_answer", "max_steps": 1}
    given |= {"per_device_train_batch_size": 4, "max_new_tokens": 4, "disable_shuffling": kept}
    train.train(recipes.load(tiny_recipe | given | ({} if stage == "ppo" else {"num_generations": 2})))
    order = [*dict.fromkeys(asked)]
    rows = json.loads((tiny_rows / "sft.json").read_text())
    assert len(order) > 1 and kept == (order == [row["instruction"] for row in rows[: len(order)]])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_trains_its_adapter(tiny_recipe, bits):
    _done, weights = run(tiny_recipe, max_steps=3, quantization_bit=bits)
    assert weights.changed() == weights.trainable() and all("lora" in name for name in weights.trainable())


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(("dtype", "kept"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_quantized_base_s_adapter_is_in_a_format_that_the_machine_multiplies(
    tiny_recipe, tiny_rows, monkeypatch, stage, dtype, kept
):
    """trl rounds it to bfloat16 on every machine, also where a product with bfloat16 is emulated."""
    monkeypatch.setenv("FTLAB_DTYPE", dtype)
    data = {"sft": "sft", "dpo": "preference"}[stage]
    keys = {"stage": stage, "dataset": str(tiny_rows / f"{data}.json"), "max_steps": 2}
    _done, weights = run(tiny_recipe, quantization_bit=4, **keys)
    trained = dict(weights.model.named_parameters())
    assert {trained[name].dtype for name in weights.trainable()} == {kept}


def test_dpo_starts_at_ln_2(tiny_recipe, tiny_rows):
    done, _ = run(tiny_recipe, stage="dpo", dataset=str(tiny_rows / "preference.json"), max_steps=2)
    assert rows(done.folder)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_a_pissa_adapter_fits_the_untouched_base(tiny_recipe, tiny_model_dir):
    done, weights = run(tiny_recipe, pissa_init=True, max_steps=3)
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(done.weights)).eval()
    live = weights.model.float().eval()
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, live(ids).logits, atol=2e-2)


class LastLogits(TrainerCallback):
    """The logits of the model at the end of its training."""

    def on_train_end(self, args, state, control, model, **_):
        with torch.no_grad():
            self.logits = model.eval()(torch.arange(5, 25)[None]).logits


@pytest.mark.parametrize(
    "keys",
    [
        {"additional_target": "embed_tokens"},
        {"additional_target": "lm_head", "pissa_init": False, "init_lora_weights": "olora"},
        {"lora_target": "embed_tokens,q_proj", "use_rslora": True},
        {"add_tokens": "<a>,<b>"},
        {"stage": "rm", "dataset": "preference", "lora_rank": 4},
    ],
    ids=str,
)
def test_a_pissa_adapter_keeps_what_was_trained_beside_it(keys, tiny_recipe, tiny_rows, tiny_model_dir, monkeypatch):
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    keys = keys | ({"dataset": str(tiny_rows / "preference.json")} if "dataset" in keys else {})
    last = LastLogits()
    done = train.train(recipes.load(tiny_recipe | {"pissa_init": True, "max_steps": 3} | keys), callbacks=[last])
    if keys.get("stage") == "rm":
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1, dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        base.resize_token_embeddings(last.logits.shape[-1])
    loaded = PeftModel.from_pretrained(base, str(done.weights)).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(torch.arange(5, 25)[None]).logits, last.logits, atol=1e-4)


def test_the_adapter_that_is_saved_is_the_one_that_was_trained(tiny_recipe, tiny_model_dir):
    done, weights = run(tiny_recipe)
    attention = weights.model.config._attn_implementation
    base = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, dtype=weights.model.dtype, attn_implementation=attention
    )
    loaded = PeftModel.from_pretrained(base, str(done.weights)).eval()
    # The same steps in the same order: equal to the bit.
    lora.install(loaded)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, weights.model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(done.weights).chat_template


def test_training_goes_on_from_an_adapter(tiny_recipe, tmp_path):
    first, _ = run(tiny_recipe)
    _second, weights = run(tiny_recipe, adapter_name_or_path=str(first.weights), output_dir=str(tmp_path / "second"))
    start = load_file(first.weights / "adapter_model.safetensors")
    name = next(name for name in weights.before if "lora_B" in name)
    assert torch.equal(weights.before[name], start[name.replace(".default", "")])


def test_without_a_terminal_each_log_is_one_row(tiny_recipe, capfd):
    done, _ = run(tiny_recipe, logging_steps=2, max_steps=4, val_size=0.25, eval_strategy="steps", eval_steps=4)
    printed, drawn = capfd.readouterr()
    shown = [line for line in printed.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in shown] == ["step 1/4", "step 2/4", "step 4/4", "step 4/4"]
    logged = rows(done.folder)
    for row, line in zip(logged, shown, strict=True):
        name = "eval_loss" if "eval_loss" in row else "loss"
        assert f"{name} {row[name]:.4g}" in line
    assert "{" not in printed and "elapsed" not in drawn


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "next: ftlab chat tiny --adapter '/runs/my run/adapter'"),
        ({"finetuning_type": "full"}, "next: ftlab chat '/runs/my run/model'"),
        ({"stage": "rm"}, "next: `reward_model: /runs/my run` in a recipe of stage ppo, grpo or rloo"),
        ({"trust_remote_code": True}, "next: ftlab chat tiny --adapter '/runs/my run/adapter' --trust-remote-code"),
        ({"model_revision": "v2"}, "next: ftlab chat tiny --adapter '/runs/my run/adapter' model_revision=v2"),
    ],
)
def test_the_last_line_says_what_to_do_next(monkeypatch, keys, said):
    values = {"model_name_or_path": "tiny", "dataset": "a", "output_dir": "/runs/my run"} | keys
    weights = "model" if "finetuning_type" in keys else "adapter"
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name == weights)
    assert train.next_step(recipes.read(values)[0], train.Run(Path("/runs/my run"), {}, reused=False)) == said


def test_the_same_recipe_is_trained_once(tiny_recipe, capsys):
    run(tiny_recipe)
    again = train.train(recipes.load(tiny_recipe))
    assert again.reused and "reused" in capsys.readouterr().out
    assert not train.train(recipes.load(tiny_recipe), fresh=True).reused


def test_what_changes_no_weight_does_not_make_it_another_run(tiny_recipe):
    run(tiny_recipe)
    assert train.train(recipes.load(tiny_recipe | {"temperature": 0.1, "plot_loss": True})).reused


def test_a_run_of_a_version_without_a_later_key_is_still_the_same_run(tiny_recipe, monkeypatch):
    decisive = recipes.decisive
    with monkeypatch.context() as earlier:
        earlier.setattr(
            recipes, "decisive", lambda recipe: {k: v for k, v in decisive(recipe).items() if k != "use_rslora"}
        )
        run(tiny_recipe)
    assert train.train(recipes.load(tiny_recipe)).reused
    with pytest.raises(LabError, match="use_rslora: False -> True"):
        run(tiny_recipe, use_rslora=True)


def test_another_recipe_does_not_replace_a_run_unasked(tiny_recipe):
    done, _ = run(tiny_recipe)
    before = (done.weights / "adapter_model.safetensors").read_bytes()
    with pytest.raises(LabError, match="lora_rank: 4 -> 8"):
        run(tiny_recipe, lora_rank=8)
    assert (done.weights / "adapter_model.safetensors").read_bytes() == before
    replaced, _ = run(tiny_recipe, lora_rank=8, overwrite_output_dir=True)
    assert not replaced.reused


def test_changed_data_is_another_run(tiny_recipe, tmp_path):
    data = tmp_path / "own.json"
    data.write_text(json.dumps([{"instruction": f"q{i}", "output": "a"} for i in range(12)]))
    run(tiny_recipe, dataset=str(data))
    data.write_text(json.dumps([{"instruction": f"q{i}", "output": "b"} for i in range(12)]))
    with pytest.raises(LabError, match="data"):
        run(tiny_recipe, dataset=str(data))


def test_a_result_that_was_damaged_is_made_again(tiny_recipe, capsys):
    done, _ = run(tiny_recipe)
    path = done.weights / "adapter_model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again, _ = run(tiny_recipe)
    assert not again.reused and path.read_bytes() == good
    assert "cannot be trusted" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_left_alone(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    with pytest.raises(LabError, match=r"thesis\.tex"):
        run(tiny_recipe)
    assert (folder / "thesis.tex").read_text() == "all of it"


def test_validation_rows_are_held_out_and_scored(tiny_recipe, capsys):
    done, _ = run(tiny_recipe, val_size=0.25, eval_strategy="steps", eval_steps=3)
    assert [row["step"] for row in rows(done.folder) if "eval_loss" in row] == [3, 6]
    printed = capsys.readouterr().out
    assert "9 train + 3 validation" in printed and "examples: 9 read, 9 kept" in printed


def test_the_first_and_the_last_step_are_always_logged(tiny_recipe):
    done, _ = run(tiny_recipe, logging_steps=50, save_strategy="no")
    assert [row["step"] for row in rows(done.folder)] == [1, 6]


def test_examples_that_are_cut_are_counted(tiny_recipe, capsys):
    run(tiny_recipe, cutoff_len=64, max_steps=1)
    assert "examples: 12 read, 12 kept; 0 cut to 64 tokens (0 tokens lost), 0 dropped" in capsys.readouterr().out
    run(tiny_recipe, cutoff_len=32, max_steps=1, overwrite_output_dir=True)
    assert "examples: 12 read, 12 kept; 12 cut to 32 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "dpo"}, "stage dpo trains on prompt, chosen, rejected"),
        ({"eval_strategy": "steps"}, "no validation set"),
        ({"val_size": 12}, "cannot hold out"),
        ({"lora_target": "nowhere"}, "no layer called nowhere"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3}, "cannot choose 3 of 2"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "nowhere"}, "no layer called nowhere"),
        ({"template": "llama3"}, "use `template: chatml`"),
        ({"template": "chatmal"}, "did you mean chatml"),
        ({"deepspeed": "nowhere.json"}, "settings are inconsistent|eepspeed"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"output_dir": None}, "has no `output_dir`"),
        ({"model_name_or_path": "./nowhere"}, "folder not found"),
    ],
)
def test_what_cannot_run_is_one_line(tiny_recipe, keys, message):
    with pytest.raises(LabError, match=message) as error:
        run(tiny_recipe, **keys)
    assert error.value.fix and error.value.exit_code == 2


def test_the_right_template_and_none_are_the_same_run_of_tokens(tiny_recipe, tmp_path):
    named, _ = run(tiny_recipe, template="qwen")
    own, _ = run(tiny_recipe, output_dir=str(tmp_path / "own"))
    assert rows(named.folder) == rows(own.folder)


def test_counting_input_tokens_leaves_the_log_as_it_is(tiny_recipe):
    done, _ = run(tiny_recipe, include_num_input_tokens_seen=True, max_steps=2)
    found = rows(done.folder)
    assert [row["step"] for row in found] == [1, 2] and found[1]["num_input_tokens_seen"] > 0


def test_what_validates_is_not_mixed_as_what_is_trained_on(tiny_recipe, tiny_rows, tmp_path, tiny_tokenizer):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": f"Name {n}.", "output": "Yes."} for n in range(12)]))
    keys = {"dataset": f"{tiny_rows / 'sft.json'},{other}", "eval_dataset": str(tiny_rows / "sft.json")}
    keys |= {"mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}
    trained, held_out = train.dataset.splits(recipes.load(tiny_recipe | keys), tiny_tokenizer)
    assert len(held_out) == 12 and len(trained) > 12


def test_a_tokenizer_without_an_end_token_is_refused(tiny_recipe, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(LabError, match="the tokenizer has no end token"):
        train.load_tokenizer(recipes.load(tiny_recipe), str(tmp_path / "tokenizer"))


def test_val_size_keeps_what_a_mixture_repeats(tiny_recipe, tiny_rows, tmp_path, capsys):
    few = tmp_path / "few.json"
    few.write_text(json.dumps([{"instruction": f"Name {n}.", "output": "Yes."} for n in range(2)]))
    keys = {"dataset": f"{tiny_rows / 'sft.json'},{few}", "mix_strategy": "interleave_over", "val_size": 3}
    keys |= {"interleave_probs": "0.5,0.5"}
    mixed, _ = train.dataset.read_splits(recipes.load(tiny_recipe | keys | {"val_size": 0}))
    trained, held_out = train.dataset.read_splits(recipes.load(tiny_recipe | keys))
    asked = {row["messages"][0]["content"] for row in held_out}
    assert len(asked) == 3
    assert trained["messages"] == [turns for turns in mixed["messages"] if turns[0]["content"] not in asked]
    assert f"{len(trained)} train, 11 different ones" in capsys.readouterr().out and len(trained) > 11


def test_questions_that_train_and_validate_are_counted(tiny_recipe, tiny_rows, tmp_path, capsys):
    rows = json.loads((tiny_rows / "sft.json").read_text())
    (tmp_path / "held.json").write_text(json.dumps([*rows[:2], {"instruction": "Another?", "output": "Yes."}]))
    keys = {"eval_dataset": str(tmp_path / "held.json")}
    train.dataset.read_splits(recipes.load(tiny_recipe | keys))
    assert "2 of 3 examples of `eval_dataset` ask what a training example asks" in capsys.readouterr().out
    (tmp_path / "held.json").write_text(json.dumps([{"instruction": "Another?", "output": "Yes."}]))
    train.dataset.read_splits(recipes.load(tiny_recipe | keys))
    assert "ask what a training" not in capsys.readouterr().out


def test_a_check_does_not_look_at_a_model_that_must_be_fetched(tiny_recipe, capsys):
    train.check(recipes.load(tiny_recipe | {"model_name_or_path": "llama3-8b"}))
    assert "were not checked: llama3-8b is not on this machine yet" in capsys.readouterr().out


def test_a_check_refuses_the_folder_of_another_run_as_training_does(tiny_recipe):
    run(tiny_recipe, max_steps=1)
    train.check(recipes.load(tiny_recipe | {"max_steps": 1}))
    with pytest.raises(LabError, match="lora_rank: 4 -> 2"):
        train.check(recipes.load(tiny_recipe | {"max_steps": 1, "lora_rank": 2}))


def test_a_tokenizer_without_a_padding_token_pads_with_the_end(tiny_recipe, tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").pad_token is None
    assert train.load_tokenizer(recipes.load(tiny_recipe), str(tmp_path / "tokenizer")).pad_token == "<|im_end|>"


def test_a_run_without_its_picture(tiny_recipe):
    done, _ = run(tiny_recipe, max_steps=1)
    assert not (done.folder / "loss.png").exists() and (done.folder / "metrics.json").is_file()


def test_float16_may_overflow_a_few_times_in_a_row_and_no_other_format_once():
    model = torch.nn.Linear(1, 1, bias=False)
    guard, state = callbacks.Guard(), SimpleNamespace(global_step=7)
    guard.on_train_begin(None, state, None, model=model)
    for mixed, most in ((True, callbacks.FP16_SKIPS), (False, 0)):
        model.weight.grad = torch.ones(1, 1)
        guard.on_pre_optimizer_step(SimpleNamespace(fp16=mixed), state, None)
        model.weight.grad = torch.full((1, 1), math.inf)
        for _ in range(most):
            guard.on_pre_optimizer_step(SimpleNamespace(fp16=mixed), state, None)
        with pytest.raises(LabError, match="step 8: the gradient is NaN or infinite"):
            guard.on_pre_optimizer_step(SimpleNamespace(fp16=mixed), state, None)


def test_a_closed_pipe_is_no_failed_write_of_the_run(tmp_path):
    with pytest.raises(BrokenPipeError), callbacks.writing(tmp_path, tmp_path):
        raise BrokenPipeError
    with pytest.raises(LabError), callbacks.writing(tmp_path, tmp_path):
        raise OSError(28, "No space left on device")


def test_a_share_that_holds_out_nothing_is_refused(tiny_recipe):
    with pytest.raises(LabError, match=r"cannot hold out 0\.001 of 12 examples"):
        run(tiny_recipe, val_size=0.001)


def test_kto_with_one_label_is_said(tiny_recipe, tiny_rows, tmp_path, capsys):
    rows = json.loads((tiny_rows / "kto.json").read_text())
    (tmp_path / "good.json").write_text(json.dumps([row for row in rows if row["kto_tag"]]))
    for dataset, said in ((tmp_path / "good.json", True), (tiny_rows / "kto.json", False)):
        train.check(recipes.load(tiny_recipe | {"stage": "kto", "dataset": str(dataset)}))
        note = "all examples (6) are labelled true: KTO needs desirable and undesirable answers"
        assert (note in capsys.readouterr().out) == said
        assert (note in str(check.check(str(dataset)))) == said


def test_a_checkpoint_of_a_run_that_is_not_there_is_refused_by_the_check_too(tiny_recipe):
    with pytest.raises(LabError, match="output_dir holds no run") as caught:
        train.check(recipes.load(tiny_recipe | {"resume_from_checkpoint": "auto"}))
    assert caught.value.where == "auto" and not Path(tiny_recipe["output_dir"]).exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 16},
         "no batch is left to train on: 12 training examples, 16 in a batch"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 4, "packing": True, "cutoff_len": 256},
         "training examples, 4 in a batch"),
        ({"finetuning_type": "prefix_tuning", "peft_config": {"num_virtual_tokens": 0}},
         "prefix_tuning has no weights to train"),
    ],
)  # fmt: skip
def test_a_run_that_would_train_nothing_is_refused_and_leaves_nothing(tiny_recipe, keys, message):
    own = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    with pytest.raises(LabError, match=message) as error:
        run(own, **keys)
    with pytest.raises(LabError) as checked:
        train.check(recipes.load(own | keys))
    assert str(checked.value) == str(error.value)
    assert error.value.exit_code == 2 and not Path(tiny_recipe["output_dir"]).exists()


EVALUATED = {"val_size": 0.2, "eval_strategy": "steps"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"warmup_steps": 12}, "12 is more than this run's 6 steps: the learning rate never rises above 0.00417"),
        ({"warmup_steps": 6}, ""),
        ({"warmup_ratio": 1.0}, ""),
        ({"warmup_steps": 12, "lr_scheduler_type": "constant"}, ""),
        # 12 examples in batches of 2, three times.
        ({"max_steps": -1, "num_train_epochs": 3, "warmup_steps": 19}, "19 is more than this run's 18 steps"),
        ({"max_steps": -1, "num_train_epochs": 3, "warmup_steps": 18}, ""),
        (EVALUATED | {"eval_steps": 7}, "7 is more than this run's 6 steps: the trained model is evaluated only after"),
        (EVALUATED | {"eval_steps": 6}, ""),
        (EVALUATED | {"eval_steps": 0.9}, ""),
        (EVALUATED | {"eval_strategy": "epoch"}, ""),
        (EVALUATED | {"eval_steps": 7, "eval_delay": 7}, "eval_delay: 7 is more than this run's 6 steps: the"),
        (EVALUATED | {"eval_steps": 2, "eval_delay": 6}, ""),
        # 10 examples in batches of 2: 5 steps an epoch.
        (EVALUATED | {"eval_strategy": "epoch", "eval_delay": 1.3}, "1.3 is more than this run's 1.2 epochs"),
        (EVALUATED | {"eval_strategy": "epoch", "eval_delay": 1.1}, ""),
        (EVALUATED | {"eval_steps": 2, "early_stopping_steps": 2}, "2 evaluations before its end, 3 needed"),
        (EVALUATED | {"eval_steps": 2, "early_stopping_steps": 1, "eval_delay": 3}, "1 evaluation before its end, 2"),
        (EVALUATED | {"eval_steps": 2, "early_stopping_steps": 1}, ""),
        (
            EVALUATED | {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_steps": 1},
            "1 evaluation before its end",
        ),
        # Packed into one row: six epochs.
        (
            EVALUATED | {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_steps": 4}
            | {"packing": True, "cutoff_len": 1024},
            "",
        ),
    ],
)  # fmt: skip
def test_a_warm_up_or_an_evaluation_that_the_run_does_not_reach_is_said(tiny_recipe, keys, message, capsys):
    train.check(recipes.load(tiny_recipe | keys))
    said = [line for line in capsys.readouterr().out.splitlines() if "this run's" in line or "stop this run" in line]
    assert len(said) == bool(message) and message in "".join(said)


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"eval_steps": 7}, [6]),
        ({"eval_steps": 4, "eval_delay": 7}, []),
        ({"eval_strategy": "epoch", "eval_delay": 1.3}, []),
        ({"eval_strategy": "epoch", "eval_delay": 1.1}, [6]),
    ],
)
def test_the_notes_on_evaluations_tell_what_happens(tiny_recipe, keys, steps):
    run(tiny_recipe, **EVALUATED | keys)
    log = folder.read_log(Path(tiny_recipe["output_dir"]))
    assert [row["step"] for row in log if "eval_loss" in row] == steps


def test_examples_are_not_packed_for_the_notes_alone(tiny_recipe, monkeypatch, capsys):
    packings = []
    packed = build.packed
    monkeypatch.setattr(build, "packed", lambda *given: packings.append(1) or packed(*given))
    long = EVALUATED | {"packing": True, "max_steps": -1, "num_train_epochs": 9, "per_device_train_batch_size": 1}
    train.check(recipes.load(tiny_recipe | long | {"eval_steps": 2}))
    assert not packings
    # Where their number matters, the packed rows are counted.
    train.check(recipes.load(tiny_recipe | long | {"eval_steps": 60}))
    assert packings == [1] and "60 is more than this run's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        ([True] * 10 + [False] * 10, {}, "20 examples are trained in their order"),
        ([True] * 10 + [False] * 10, {"disable_shuffling": False}, ""),
        ([True, False] * 10, {}, ""),
        # In random order a tenth of the other label leaves long blocks too.
        ([True] * 9 + [False] + [True] * 9 + [False], {}, ""),
    ],
)
def test_examples_of_kto_that_are_sorted_by_their_label_are_said(tiny_recipe, tmp_path, labels, more, said, capsys):
    rows = [{"instruction": f"{n}?", "output": f"{n}.", "kto_tag": label} for n, label in enumerate(labels)]
    (tmp_path / "sorted.json").write_text(json.dumps(rows))
    keys = {"stage": "kto", "dataset": str(tmp_path / "sorted.json")} | more
    train.check(recipes.load(tiny_recipe | keys))
    lines = [line for line in capsys.readouterr().out.splitlines() if "are trained in their order" in line]
    assert len(lines) == bool(said) and said in "".join(lines)
    if not more:
        assert check.check(str(tmp_path / "sorted.json")).notes == lines


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("loha", {"r": 0}),
        ("loha", {"module_dropout": "x"}),
        ("loha", {"use_effective_conv2d": 1}),
        ("lokr", {"r": -2}),
        ("adalora", {"lora_dropout": -0.5}),
    ],
)
def test_wrong_values_in_peft_config_are_not_blamed_on_layer_names(tiny_recipe, method, settings):
    own = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    with pytest.raises(LabError) as error:
        train.check(recipes.load(own | {"finetuning_type": method, "peft_config": settings}))
    assert error.value.where == "peft_config" and error.value.fix == "correct the values in `peft_config`"


@pytest.mark.parametrize(
    ("optim", "arguments", "unread"),
    [
        ("adamw_torch", "eps=1e-6", "eps"),
        ("adafactor", "a=1, b=2", "a, b"),
        ("sgd", "momentum=0.9,beta1=0.5", "beta1"),
        ("sgd", "momentum=0.9,nesterov=true", ""),
        ("rmsprop", "alpha=0.99,centered=1", ""),
    ],
)
def test_arguments_that_an_optimizer_does_not_read_are_refused(tiny_recipe, optim, arguments, unread):
    recipe = recipes.load(tiny_recipe | {"optim": optim, "optim_args": arguments})
    if not unread:
        train.check(recipe)
        return
    with pytest.raises(LabError, match=f"optimizer {optim} does not read {unread}\\n") as error:
        train.check(recipe)
    assert error.value.where == "optim_args"


def test_a_device_map_names_modules_of_the_model(tiny_recipe):
    train.check(recipes.load(tiny_recipe | {"device_map": {"model": "cpu", "lm_head": "cpu"}}))
    with pytest.raises(LabError, match=r"no layer called model\.layer\.0") as error:
        train.check(recipes.load(tiny_recipe | {"device_map": {"": "cpu", "model.layer.0": "cpu"}}))
    assert error.value.where == "device_map"


def test_substitutions_without_a_placeholder_are_said(tiny_recipe, tmp_path, capsys):
    rows = [{"instruction": f"Who are you? {n}", "output": "I am {{name}}."} for n in range(3)]
    (tmp_path / "who.json").write_text(json.dumps(rows))
    keys = {"dataset": f"{tmp_path / 'who.json'},{tiny_recipe['dataset']}"}
    for values, said in (({"name": "Lumi", "autor": "Ada"}, True), ({"name": "Lumi"}, False)):
        train.check(recipes.load(tiny_recipe | keys | {"dataset_substitutions": values}))
        assert ("no example contains a placeholder for autor" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("keys", "changed", "end"),
    [
        ({"max_steps": 2}, {"learning_rate": 1e-3}, 2),
        ({"max_steps": None, "num_train_epochs": 1, "gradient_accumulation_steps": 4}, {"learning_rate": 1e-3}, 2),
        ({"max_steps": None, "num_train_epochs": 1, "packing": True}, {"num_train_epochs": 0.5}, 2),
    ],
)
def test_a_named_checkpoint_with_no_step_left_is_refused_for_another_recipe(tiny_recipe, keys, changed, end):
    own = {name: value for name, value in (tiny_recipe | keys | {"save_steps": 2}).items() if value is not None}
    trained, _ = run(own)
    last = max(trained.folder.glob("checkpoint-*"), key=saved_weights.step_of)
    again = recipes.load(own | changed | {"resume_from_checkpoint": str(last)})
    for refused in (train.check, train.train):
        with pytest.raises(LabError, match=f"no step is left to train: this recipe ends at step {end}"):
            refused(again)
    assert run(own, resume_from_checkpoint=str(last))[0].reused
