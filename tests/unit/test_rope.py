"""`rope_scaling` stretches the positions of a model of 512 tokens, in training, chat and export alike."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import chat, export, rope, train


@pytest.mark.parametrize("way", ["linear", "dynamic", "yarn", "llama3"])
def test_positions_are_stretched_as_transformers_does(tiny_model_dir, way):
    options = rope.options((way, 1200), tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, **options)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert model.config.rope_parameters["rope_type"] == way and model.config.rope_parameters["factor"] == 3
    assert model.config.max_position_embeddings == (512 if way == "dynamic" else 1536)
    both = [one.model.rotary_emb(torch.ones(1), torch.tensor([[1098]]))[0] for one in (model, plain)]
    assert not torch.allclose(*both)
    if way == "linear":
        third = plain.model.rotary_emb(torch.ones(1), torch.tensor([[366]]))[0]
        assert torch.allclose(both[0], third, atol=1e-4)


def test_short_rows_need_no_stretching(tiny_model_dir, tiny_recipe):
    assert rope.options(("linear", 512), tiny_model_dir) == {} == rope.options(None, tiny_model_dir)
    said = rope.note(recipes.load(tiny_recipe | {"rope_scaling": "yarn"}), tiny_model_dir)
    assert "changes nothing" in said and rope.note(recipes.load(tiny_recipe), tiny_model_dir) == ""


def test_training_chat_and_export_stretch_alike(tiny_recipe, tiny_model_dir, tmp_path, capsys):
    made = tiny_recipe | {"rope_scaling": "linear", "cutoff_len": 1000, "max_steps": 1}
    run = train.train(recipes.load(made))
    assert "rope_scaling: linear, positions stretched by 2.0" in capsys.readouterr().out
    # The run says it, also to a chat that is not told.
    model, _ = chat.load(str(tiny_model_dir), run.folder)
    assert model.config.rope_parameters["factor"] == 2
    merge = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": str(run.folder)}
    done = export.export(recipes.load(merge | {"export_dir": str(tmp_path / "merged")}))
    merged = AutoModelForCausalLM.from_pretrained(done.folder)
    assert merged.config.rope_parameters["rope_type"] == "linear" and merged.config.max_position_embeddings == 1024
    # What was stretched is not stretched again.
    again = recipes.load(made | {"model_name_or_path": str(done.folder)})
    assert rope.options(rope.scaling_of(again.model_dump()), done.folder) == {}


def test_a_model_without_such_positions_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(LabError, match="rope_scaling: gpt2 has no single kind of rotary positions"):
        rope.options(("linear", 4096), tmp_path)
