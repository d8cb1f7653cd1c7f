"""What a run has left is found by its folder, fits its base, and ends its answers as it was trained to."""

import io
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ftlab import manifests, models, saved_weights, tokens
from ftlab.apps import cli, terminal_chat
from ftlab.apps.board import validation
from ftlab.apps.board.chat_panel import ChatPanel
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import chat, compare, evaluation, export, train
from tests.resuming import StopAt

METHODS = {"lora": {}, "full": {"finetuning_type": "full", "learning_rate": 1e-3}}


@pytest.fixture
def twin(tiny_model_dir, tmp_path) -> Path:
    """Another model of the same shapes."""
    return other_model(tiny_model_dir, tmp_path / "twin", hidden_size=64)


def other_model(like: Path, place: Path, **sizes) -> Path:
    shutil.copytree(like, place)
    torch.manual_seed(7)
    config = LlamaConfig.from_pretrained(like, **sizes)
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def stopped(values: dict, **keys) -> Path:
    """Return the folder of a run that was stopped after four of its six steps."""
    run = train.train(recipes.load(values | keys), callbacks=[StopAt(3)])
    assert run.stopped_at == 4 and not any((run.folder / name).exists() for name in saved_weights.RESULTS)
    return run.folder


def first_weight(model) -> torch.Tensor:
    return next(weight for name, weight in model.named_parameters() if "lora_B" in name or "q_proj.weight" in name)


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_is_used_by_its_folder(tiny_recipe, tiny_model_dir, tmp_path, method, capsys):
    place = stopped(tiny_recipe, **METHODS[method])
    found = saved_weights.weights_of(place)
    assert found == (place / "checkpoint-4", method == "lora")
    model, _ = chat.load(str(tiny_model_dir), place, dtype="float32")
    assert "using its newest checkpoint, checkpoint-4" in capsys.readouterr().out
    saved = load_file(next(found.folder.glob("*.safetensors")))
    name = next(name for name in saved if name.endswith(("q_proj.lora_B.weight", "q_proj.weight")))
    assert torch.equal(first_weight(model), saved[name].float())
    scores = evaluation.score(recipes.load(tiny_recipe | METHODS[method]))
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    values = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": str(place)}
    done = export.export(recipes.load(values | {"export_dir": str(tmp_path / "out")}))
    assert done.greedy_equal_share == 1 and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_checkpoint_that_does_not_verify_is_passed_over(tiny_recipe):
    place = stopped(tiny_recipe)
    weights = place / "checkpoint-4" / saved_weights.ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert saved_weights.weights_of(place).folder == place / "checkpoint-2"
    for path in saved_weights.checkpoints(place):
        shutil.rmtree(path)
    with pytest.raises(LabError, match="adapter"):
        saved_weights.weights_of(place)


@pytest.mark.parametrize("method", METHODS)
def test_other_bases_are_refused_everywhere_with_the_right_one_named(tiny_recipe, twin, tmp_path, method):
    run = train.train(recipes.load(tiny_recipe | METHODS[method]))
    wide = other_model(twin, tmp_path / "wide", hidden_size=128)
    for base in (twin, wide):
        keys = {"model_name_or_path": str(base), "adapter_name_or_path": str(run.folder)}
        wrong = recipes.load(keys | {"dataset": tiny_recipe["dataset"], "export_dir": str(tmp_path / "out")})
        for act in (
            lambda base=base: chat.load(str(base), run.folder),
            lambda wrong=wrong: chat.from_recipe(wrong),
            lambda wrong=wrong: evaluation.score(wrong),
            lambda wrong=wrong: export.export(wrong),
        ):
            with pytest.raises(LabError, match="were trained on") as caught:
                act()
            assert tiny_recipe["model_name_or_path"] in str(caught.value) and caught.value.exit_code == 2


def test_serve_and_chat_say_it_in_one_line(tiny_recipe, twin, capsys, monkeypatch, tmp_path):
    run = train.train(recipes.load(tiny_recipe))
    for verb in (["chat"], ["serve", "--port", "0"]):
        assert cli.main([verb[0], str(twin), "--adapter", str(run.folder), *verb[1:]]) == 2
        said = capsys.readouterr().err
        assert "were trained on" in said and tiny_recipe["model_name_or_path"] in said and "Traceback" not in said


def test_an_adapter_without_a_record_is_judged_by_its_shapes(tiny_recipe, tmp_path):
    run = train.train(recipes.load(tiny_recipe))
    lone = shutil.copytree(run.weights, tmp_path / "lone")
    (lone / manifests.MANIFEST).unlink()
    config = json.loads((lone / saved_weights.ADAPTER_CONFIG).read_text())
    (lone / saved_weights.ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "org/gone"}))
    wide = other_model(Path(tiny_recipe["model_name_or_path"]), tmp_path / "wide", hidden_size=128)
    with pytest.raises(LabError, match="size mismatch") as caught:
        chat.load(str(wide), lone)
    assert "org/gone" in caught.value.what and caught.value.exit_code == 2


@pytest.fixture
def base_model(tmp_path) -> Path:
    """A base model: no chat template, and an eos that ends no turn."""
    place = tiny.make_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token = None, "<|im_start|>", "<|im_start|>"
    (place / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(place)
    return place


@pytest.mark.parametrize("method", METHODS)
def test_the_token_that_ends_trained_answers_ends_generated_ones(tiny_recipe, base_model, tmp_path, method):
    values = tiny_recipe | METHODS[method] | {"model_name_or_path": str(base_model), "template": "chatml"}
    run = train.train(recipes.load(values))
    ends = [tiny.make_tokenizer().convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>")]
    assert len(set(ends)) == 2
    if method == "full":
        saved = json.loads((run.weights / "generation_config.json").read_text())
        assert saved["eos_token_id"] == sorted(ends)
    model, tokenizer = chat.load(str(base_model), run.folder)
    assert model.generation_config.eos_token_id == sorted(ends) and tokens.end_ids(tokenizer) == sorted(ends)
    assert tokenizer.chat_template
    keys = {"model_name_or_path": str(base_model), "adapter_name_or_path": str(run.folder)}
    done = export.export(recipes.load(keys | {"export_dir": str(tmp_path / "out"), "export_gguf": "f16"}))
    named = GGUFReader(done.gguf).fields
    assert [int(named[f"tokenizer.ggml.{name}_token_id"].parts[-1][0]) for name in ("eot", "eos")] == ends
    exported = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert exported["eos_token_id"] == sorted(ends)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_more_tokens_than_rows_are_refused_before_anything_is_done(tiny_model_dir, tiny_recipe, tmp_path):
    place = shutil.copytree(tiny_model_dir, tmp_path / "more")
    rows = models.embedding_rows(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.add_tokens(["<plan>", "</plan>"])
    tokenizer.save_pretrained(place)
    values = tiny_recipe | {"model_name_or_path": str(place), "export_dir": str(tmp_path / "out")}
    for act in (
        lambda: train.train(recipes.load(values)),
        lambda: export.export(recipes.load(values | {"output_dir": None})),
        lambda: chat.load(str(place)),
    ):
        with pytest.raises(
            LabError, match=f"the tokenizer has {rows + 2} tokens, but the embedding has only {rows} rows"
        ) as caught:
            act()
        assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_control_token_that_nothing_writes_may_lie_behind_the_last_row(tiny_model_dir, tmp_path):
    place = shutil.copytree(tiny_model_dir, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(place)
    # Gemma 3's text models: one row less than the tokenizer has tokens.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image_soft_token>"]})
    tokenizer.save_pretrained(place)
    assert models.unreachable(tokenizer, len(tokenizer) - 1) == []
    model, loaded = chat.load(str(place))
    assert chat.reply(model, loaded, [{"role": "user", "content": "<image_soft_token>"}], max_new_tokens=2) is not None
    keys = {"model_name_or_path": str(place), "export_dir": str(tmp_path / "out")}
    assert export.export(recipes.load(keys)).greedy_equal_share == 1


def test_the_base_of_a_stopped_pissa_run_is_the_base(tiny_recipe, tiny_model_dir):
    """Its checkpoint's adapter is taken out of the base's weights, so that switching it off does not leave the base."""
    keys = tiny_recipe | {"pissa_init": True}
    before = evaluation.score(recipes.load(keys), figures=("loss",))["base"]
    place = stopped(keys)
    found = evaluation.score(recipes.load(keys), figures=("loss",))
    assert found["base"] == before and found["tuned"]["loss"] < before["loss"]
    model, _ = chat.load(str(tiny_model_dir), place)
    assert not chat.switchable(model)


def test_a_conversation_begins_with_the_system_turn_of_the_run(tiny_recipe, tiny_model_dir, monkeypatch):
    run = train.train(recipes.load(tiny_recipe | {"default_system": "You are a pirate."}))
    system = {"role": "system", "content": "You are a pirate."}
    for name in (run.folder, run.weights):
        assert chat.system_turn(None, name) == [system]
    assert chat.system_turn("Be brief.", run.folder)[0]["content"] == "Be brief." and chat.system_turn(None) == []
    asked = []
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(chat, "stream", lambda model, tokenizer, messages, **_: asked.extend(messages) or iter("yes"))
    assert cli.main(["chat", str(tiny_model_dir), "--adapter", str(run.folder)]) == 0
    assert asked[:2] == [system, {"role": "user", "content": "hello"}]
    # A recipe that names the run, but not its system turn.
    keys = {"model_name_or_path": str(tiny_model_dir), "output_dir": str(run.folder)}
    assert terminal_chat.of_recipe("it", recipes.load(keys)).system == [system]
    assert compare.load_side(str(run.folder)).system == [system]
    monkeypatch.setattr(compare.evaluate, "generate_answers", lambda model, tokenizer, chats, most: chats)
    assert compare.replies(compare.Side(None, None, [system]), ["Hi"], 8) == [
        [system, {"role": "user", "content": "Hi"}]
    ]
    panel = ChatPanel(str(tiny_model_dir), adapters=[run.weights])
    panel.load_now(str(tiny_model_dir), [str(run.weights)])
    assert list(panel.systems.values()) == [[system]]
    held_out = keys | {"eval_dataset": tiny_recipe["dataset"]}
    scored = []
    monkeypatch.setattr(
        evaluation,
        "answer",
        lambda one, examples, *_, **__: (
            scored.extend(one.tokenizer.decode(example["input_ids"]) for example in examples)
            or evaluation.Result({}, len(examples))
        ),
    )
    evaluation.score(recipes.load(held_out))
    assert len(scored) == 24 and all("You are a pirate." in text for text in scored)


def test_questions_with_choices_follow_the_system_turn(tiny_model_dir, tmp_path, monkeypatch):
    rows = [{"question": "1 + 1?", "choices": ["2", "3"], "answer": 0}]
    (tmp_path / "choices.jsonl").write_text(json.dumps(rows[0]))
    asked = []
    written = tokens.written_answers
    monkeypatch.setattr(
        tokens,
        "written_answers",
        lambda tokenizer, messages, texts: asked.append(messages) or written(tokenizer, messages, texts),
    )
    keys = {"model_name_or_path": str(tiny_model_dir), "eval_dataset": str(tmp_path / "choices.jsonl")}
    evaluation.score(recipes.load(keys | {"default_system": "Be brief."}))
    assert asked == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]]


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_model_does_not_talk(tiny_recipe, tiny_rows, tiny_model_dir, tmp_path, method):
    rows = {"stage": "rm", "dataset": str(tiny_rows / "preference.json")}
    run = train.train(recipes.load(tiny_recipe | METHODS[method] | rows))
    keys = {"model_name_or_path": str(tiny_model_dir), "export_dir": str(tmp_path / "out"), "stage": "rm"}
    wrong = recipes.load(keys | {"adapter_name_or_path": str(run.folder)})
    for act in (lambda: chat.load(str(tiny_model_dir), run.folder), lambda: export.export(wrong)):
        with pytest.raises(LabError, match="this is a reward model"):
            act()


def test_the_panels_say_it_beside_the_field(tiny_recipe, twin):
    run = train.train(recipes.load(tiny_recipe))
    for base, wrong in ((tiny_recipe["model_name_or_path"], False), (str(twin), True)):
        keys = {"model_name_or_path": base, "adapter_name_or_path": str(run.folder)}
        said = validation.together(recipes.load(keys))
        assert ("were trained on" in said.get("adapter_name_or_path", "")) is wrong
