"""`add_tokens`: the vocabulary grows, the new rows are trained, and chat, eval and export have them."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import to_frameworks
from ftlab.runs import chat, evaluation, export, rewards, train


@pytest.mark.parametrize("method", ["lora", "full"])
def test_added_tokens_are_trained_and_stay(method, tiny_recipe, tiny_model_dir, tmp_path, capsys):
    keys = {"add_tokens": "plus,<city>", "finetuning_type": method, "max_steps": 2, "val_size": 3}
    made = recipes.load(tiny_recipe | keys)
    done = train.train(made)
    assert "added to the vocabulary: plus, <city>;" in capsys.readouterr().out
    model, tokenizer = chat.load(str(tiny_model_dir), done.folder, dtype="float32")
    before = len(AutoTokenizer.from_pretrained(tiny_model_dir))
    assert len(tokenizer) == before + 2 == model.get_input_embeddings().weight.shape[0]
    (number,) = tokenizer("plus", add_special_tokens=False)["input_ids"]
    saved = load_file(next(done.weights.glob("*.safetensors")))
    rows = [weight for name, weight in saved.items() if "embed_tokens" in name or "lm_head" in name]
    assert len(rows) == 2 and all(len(weight) == before + 2 for weight in rows)
    assert any(not torch.equal(rows[0][number], rows[0][other]) for other in (number - 1, number + 1))
    scores = evaluation.score(made)
    assert scores["tuned"]["loss"] > 0 and scores["base"]["loss"] > 0
    if method == "lora":
        values = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": str(done.folder)}
        export.export(recipes.load(values | {"export_dir": str(tmp_path / "out")}))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        ids = torch.tensor([[number, 40, number + 1, 41]])
        with torch.inference_mode():
            assert (merged(ids).logits - model(ids).logits).abs().max() < 1e-4


def test_a_token_that_is_there_already_is_not_called_added(tiny_recipe, capsys):
    for tokens, said, silent in (
        ("plus,a", "added to the vocabulary: plus; it has 259", "already in the vocabulary, not added: a;"),
        ("a", "already in the vocabulary, not added: a;", ""),
    ):
        keys = {"add_tokens": tokens, "output_dir": f"{tiny_recipe['output_dir']}-{len(tokens)}", "max_steps": 1}
        train.check(recipes.load(tiny_recipe | keys))
        out = capsys.readouterr().out
        assert said in out and silent in out and ("added to the vocabulary: " in out) == ("plus" in tokens)


def test_the_new_rows_follow_the_gradient(tiny_recipe):
    """With a rate of 0 they keep what they were drawn as; with another one they move."""
    still, moved = (
        train.train(recipes.load(tiny_recipe | {"add_tokens": "plus", "max_steps": 2, "output_dir": place} | rate))
        for place, rate in (
            (tiny_recipe["output_dir"] + "-still", {"learning_rate": 0.0}),
            (tiny_recipe["output_dir"] + "-moved", {"learning_rate": 0.01}),
        )
    )
    first, second = (load_file(run.weights / "adapter_model.safetensors") for run in (still, moved))
    name = next(name for name in first if "embed_tokens" in name)
    assert not torch.equal(first[name][-1], second[name][-1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"add_tokens": "a", "finetuning_type": "freeze"}, "`finetuning_type: freeze` does not"),
        ({"add_tokens": "a", "finetuning_type": "prompt_tuning"}, "`finetuning_type: prompt_tuning` does not"),
        ({"add_tokens": "a", "finetuning_type": "full", "stage": "dpo"}, "reference of `stage: dpo`"),
        ({"add_tokens": ""}, "add_tokens.*at least 1 character"),
        ({"add_special_tokens": "<a>"}, "write `add_tokens`"),
        ({"new_special_tokens_config": "a.yaml"}, "write `add_tokens`"),
    ],
)
def test_what_would_leave_them_untrained_is_refused(keys, message, tiny_recipe):
    own = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    with pytest.raises(LabError, match=message) as error:
        recipes.load(own | keys)
    assert error.value.exit_code == 2


def test_llamafactory_is_told_to_resize(tiny_recipe):
    made, notes = recipes.read(tiny_recipe | {"add_tokens": "<a>,<b>", "resize_vocab": True})
    assert any("resize_vocab" in note for note in notes)
    shown = to_frameworks.show(made, "llamafactory")
    assert "resize_vocab: true" in shown and "add_tokens: <a>,<b>" in shown


def test_a_reward_model_with_added_tokens_scores(tiny_recipe, tiny_model_dir, tiny_rows):
    keys = {"stage": "rm", "add_tokens": "plus", "dataset": str(tiny_rows / "preference.json"), "max_steps": 1}
    done = train.train(recipes.load(tiny_recipe | keys))
    judge = rewards.from_model(str(done.folder), str(tiny_model_dir), torch.float32)
    asked, said = ([[{"role": role, "content": "2 plus 3"}]] for role in ("user", "assistant"))
    assert len(judge(prompts=asked, completions=said)) == 1
