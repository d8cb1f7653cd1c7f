"""Several adapters: all but the last merged and the last continued, or all merged and a new one trained."""

import json
import shutil
from pathlib import Path

import families
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_recipe, make_tokenizer
from transformers import AutoModelForCausalLM

from ftlab import device, manifests
from ftlab.apps import cli
from ftlab.apps.board.chat_panel import ChatPanel
from ftlab.apps.serve import loading
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import to_script
from ftlab.runs import chat, engines, evaluation, export, folder, pick_engine, reference, train

IDS = torch.arange(40, 60).unsqueeze(0)


@pytest.fixture(scope="module")
def trained(tiny_model_dir, tiny_rows, tmp_path_factory):
    """Return a function that trains a recipe of two steps, and what runs a and b, of other seeds, left."""
    root = tmp_path_factory.mktemp("adapters")

    def run(name: str, **keys: object) -> str:
        recipe = make_recipe(tiny_model_dir, tiny_rows, root / name) | {"max_steps": 2} | keys
        return str(train.train(recipes.load(recipe)).folder)

    return run, run("a", seed=1), run("b", seed=2, lora_rank=2)


def by_hand(base: object, *adapters: str) -> torch.Tensor:
    """Return the logits of a base with adapters merged one after another, by PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for one in adapters:
        model = PeftModel.from_pretrained(model, f"{one}/adapter").merge_and_unload()
    with torch.no_grad():
        return model(IDS).logits


def logits(base: object, adapter: str) -> torch.Tensor:
    """Return the logits that `ftlab chat` answers by."""
    with torch.no_grad():
        return chat.load(str(base), adapter)[0](IDS).logits


def test_a_list_is_merged_in_its_order_for_chat_and_export(trained, tiny_model_dir, tmp_path):
    _, a, b = trained
    wanted = by_hand(tiny_model_dir, a, b)
    assert not torch.allclose(wanted, by_hand(tiny_model_dir, b), atol=1e-3)
    torch.testing.assert_close(logits(tiny_model_dir, f"{a},{b}"), wanted, atol=1e-5, rtol=1e-4)
    keys = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": f"{a}, {b}"}
    export.export(recipes.load(keys | {"export_dir": str(tmp_path / "merged")}))
    torch.testing.assert_close(by_hand(tmp_path / "merged"), wanted, atol=1e-5, rtol=1e-4)
    model, _ = chat.from_recipe(recipes.load(keys))
    assert not chat.switchable(model)
    assert list(loading.load(str(tiny_model_dir), [f"{a},{b}"]).served) == [tiny_model_dir.name]


def test_the_last_is_continued_on_a_base_with_the_others_merged(trained, tiny_model_dir):
    run, a, b = trained
    c = run("c", adapter_name_or_path=f"{a},{b}", lora_rank=2, max_steps=1, learning_rate=0.0)
    assert folder.chain(c) == [a, c] and folder.chain(f"{c}/adapter") == [a, f"{c}/adapter"]
    # Nothing was learned: c is b, and belongs on the base with a.
    torch.testing.assert_close(logits(tiny_model_dir, c), by_hand(tiny_model_dir, a, b), atol=1e-5, rtol=1e-4)
    alone = run("d", adapter_name_or_path=b, lora_rank=2, max_steps=1)
    assert folder.read_log(Path(c))[0]["loss"] != pytest.approx(folder.read_log(Path(alone))[0]["loss"])


def test_a_new_adapter_begins_where_the_merged_ones_end(trained, tiny_model_dir, tiny_rows, tmp_path):
    run, a, b = trained
    new = run("new", adapter_name_or_path=f"{a},{b}", create_new_adapter=True, lora_rank=6, learning_rate=0.0)
    assert folder.chain(new) == [a, b, new]
    torch.testing.assert_close(logits(tiny_model_dir, new), by_hand(tiny_model_dir, a, b), atol=1e-5, rtol=1e-4)
    pairs = {"stage": "dpo", "dataset": str(tiny_rows / "preference.json"), "max_steps": 1}
    over = run("over", adapter_name_or_path=new, create_new_adapter=True, **pairs)
    # The reference is the base with everything merged: the first loss is ln 2.
    assert folder.read_log(Path(over))[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert folder.chain(over) == [a, b, new, over]
    values = {"model_name_or_path": str(tiny_model_dir), "output_dir": over, "dataset": str(tiny_rows / "sft.json")}
    found = evaluation.score(recipes.load(values), figures=("loss",), limit=4)
    plain = evaluation.score(recipes.load(values | {"output_dir": str(tmp_path / "none")}), figures=("loss",), limit=4)
    # "base" is the base, not the base with adapters merged into it.
    assert found["base"]["loss"] == pytest.approx(plain["base"]["loss"], abs=1e-6)
    assert found["tuned"]["loss"] != pytest.approx(found["base"]["loss"], abs=1e-3)


def test_a_base_with_adapters_merged_is_not_called_the_base(trained, tiny_model_dir):
    run, a, b = trained
    over = run("beside", adapter_name_or_path=a, create_new_adapter=True, max_steps=1)
    panel = ChatPanel(str(tiny_model_dir), adapters=[])
    for chosen in ([over], [b, over]):
        with pytest.raises(LabError, match="adapters that its run merged") as error:
            panel.load_now(str(tiny_model_dir), chosen)
        assert error.value.where == over
    with pytest.raises(LabError, match="adapters that its run merged"):
        loading.load(str(tiny_model_dir), [f"one={b}", f"two={over}"])


@pytest.mark.parametrize("framework", ["llamafactory", "trl", "swift", "axolotl", "alpaca-lora"])
def test_another_framework_is_shown_every_adapter_or_nothing(framework, trained, tiny_recipe, tmp_path, capsys):
    """A run that continued the second of two adapters belongs on the base with the first: `--as` says so."""
    run, a, b = trained
    over = run(f"shown-{framework}", adapter_name_or_path=f"{a},{b}", lora_rank=2, max_steps=1)
    path = tmp_path / "over.yaml"
    path.write_text(json.dumps(tiny_recipe | {"adapter_name_or_path": over, "lora_rank": 2, "max_steps": 1}))
    capsys.readouterr()
    status = cli.main(["recipe", "show", str(path), "--as", framework])
    out, err = capsys.readouterr()
    if framework == "llamafactory":
        assert status == 0 and yaml.safe_load(out)["adapter_name_or_path"] == f"{a},{over}"
    else:
        assert status == 2 and f"{framework} cannot do this: adapter_name_or_path: a,b" in err and not out
    path.write_text(json.dumps(tiny_recipe | {"adapter_name_or_path": b, "create_new_adapter": True}))
    assert cli.main(["recipe", "show", str(path), "--as", framework]) == (0 if framework == "llamafactory" else 2)


def test_a_comma_in_a_folder_s_name_merges_nothing(tiny_model_dir, tmp_path):
    (tmp_path / "x,y").mkdir()
    keys = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": str(tmp_path / "x,y")}
    assert recipes.load(keys | {"quantization_bit": 4}).merges == ""


def test_a_reference_takes_several_adapters(trained, tiny_model_dir, tiny_rows):
    _, a, b = trained
    keys = {"model_name_or_path": str(tiny_model_dir), "stage": "dpo", "ref_model": str(tiny_model_dir)}
    made = recipes.load(keys | {"ref_model_adapters": f"{a},{b}", "dataset": str(tiny_rows / "preference.json")})
    with torch.no_grad():
        own = reference.load(made, str(tiny_model_dir), device.describe())(IDS).logits
    torch.testing.assert_close(own, by_hand(tiny_model_dir, a, b), atol=1e-5, rtol=1e-4)


def test_a_run_that_continues_its_own_adapter_is_no_circle(trained, tmp_path):
    run = tmp_path / "self"
    run.mkdir()
    settings = {"adapter_name_or_path": str(run / "adapter")}
    manifests.write_json(run / manifests.MANIFEST, {"run_id": "1", "settings": settings})
    assert folder.chain(run / "adapter") == [str(run / "adapter")]


def test_a_folder_with_a_comma_in_its_name_is_one(trained, tiny_model_dir, tmp_path):
    shutil.copytree(f"{trained[1]}/adapter", tmp_path / "x,y")
    torch.testing.assert_close(
        logits(tiny_model_dir, str(tmp_path / "x,y")), by_hand(tiny_model_dir, trained[1]), atol=1e-5, rtol=1e-4
    )


def test_what_cannot_be_merged_is_one_line(trained, tiny_model_dir, tiny_recipe, tmp_path, capsys):
    run, a, b = trained
    whole = run("whole", finetuning_type="full", max_steps=1)
    grown = run("grown", add_tokens="<x>,<y>", max_steps=1)
    virtual = run("virtual", finetuning_type="prompt_tuning", max_steps=1)
    base = {"model_name_or_path": str(tiny_model_dir)}
    for first, said in (
        (whole, f"{whole} cannot be merged into this base"),
        (grown, f"{grown} brings tokens that the base lacks"),
        (virtual, "virtual"),
    ):
        with pytest.raises(LabError, match=said) as error:
            chat.from_recipe(recipes.load(base | {"adapter_name_or_path": f"{first},{b}"}))
        assert error.value.exit_code == 2
    with pytest.raises(LabError, match=f"{whole} cannot be merged into this base"):
        chat.from_recipe(recipes.load(base | {"adapter_name_or_path": f"{b},{whole}"}))
    keys = tiny_recipe | {"adapter_name_or_path": f"{a},{tmp_path / 'none'}"}
    with pytest.raises(LabError, match="none"):
        train.train(recipes.load(keys))
    with pytest.raises(LabError, match="adapter_name_or_path: a,b"):
        to_script.script(recipes.load(tiny_recipe | {"adapter_name_or_path": f"{a},{b}", "lora_rank": 2}))
    assert cli.main(["chat", str(tiny_model_dir), "--adapter", f"{whole},{b}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A model whose head is its embedding, an adapter on the embedding alone, and the logits with it."""
    root = tmp_path_factory.mktemp("tied")
    model = families.model_of("llama", tie_word_embeddings=True)
    model.save_pretrained(root / "base")
    make_tokenizer().save_pretrained(root / "base")
    config = LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False, use_rslora=True)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(root / "adapter")
    with torch.no_grad():
        return root / "base", root / "adapter", adapted(IDS).logits


def test_a_reference_with_an_adapter_on_its_embedding_is_merged_rightly(tied, tiny_rows):
    base, adapter, wanted = tied
    keys = {"model_name_or_path": str(base), "stage": "dpo", "ref_model": str(base)}
    made = recipes.load(keys | {"ref_model_adapters": str(adapter), "dataset": str(tiny_rows / "preference.json")})
    with torch.no_grad():
        own = reference.load(made, str(base), device.describe())(IDS).logits
    torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_an_engine_merges_it_rightly(tied, backend, monkeypatch):
    base, adapter, wanted = tied
    monkeypatch.setattr(pick_engine, "suited", lambda model: ["loop"])
    engine, _ = chat.load(str(base), str(adapter), backend)
    assert isinstance(engine, engines.Loop)
    with torch.no_grad():
        torch.testing.assert_close(engine.begin()(IDS), wanted[:, -1], atol=1e-5, rtol=1e-4)


def test_the_server_s_gguf_file_has_it_merged_rightly(tied):
    base, adapter, wanted = tied
    served = loading.load(str(base), [str(adapter)], backend="llama.cpp")
    with engines.gguf_file(served.model, served.tokenizer, "llama.cpp") as path:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    with torch.no_grad():
        error = (model(IDS).logits - wanted).std() / wanted.std()
    assert error < 0.03


@pytest.mark.parametrize("content", ["", "[1]"])
def test_a_broken_configuration_of_an_adapter_is_one_line(content, tied, tmp_path, tiny_rows):
    base, adapter, _ = tied
    shutil.copytree(adapter, tmp_path / "broken")
    (tmp_path / "broken" / "adapter_config.json").write_text(content)
    keys = {"model_name_or_path": str(base), "adapter_name_or_path": str(tmp_path / "broken")}
    with pytest.raises(LabError, match=r"adapter_config\.json: not a valid JSON object"):
        evaluation.score(recipes.load(keys | {"eval_dataset": str(tiny_rows / "sft.json")}))
