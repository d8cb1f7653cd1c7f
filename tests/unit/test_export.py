"""Export: merged, saved and reloaded is the live model, in every family; what cannot be exported is refused."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from gguf import GGUFReader, TokenType
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GenerationConfig,
    GlmConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from ftlab import system_errors
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import chat, engines, export, folder, gguf, gguf_families, train

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
FAMILIES = {
    "llama": (LlamaConfig, GROUPED),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, GROUPED),
    "mistral": (MistralConfig, GROUPED),
    "glm": (GlmConfig, GROUPED),
    "gpt_neox": (GPTNeoXConfig, SIZES | {"max_position_embeddings": 256}),
    "bloom": (BloomConfig, {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "olmo2": (Olmo2Config, GROUPED),
    "gemma2": (Gemma2Config, GROUPED),
}
PROMPTS = ["What is 2 plus 3?", "Who are you?", "Name 12 colours.", "Write to me, please!"]


def make_base(folder: Path, family: str = "llama", tied: bool = False, seed: int = 0) -> Path:
    """Write a random base of a family, with the byte tokenizer, into `folder`."""
    config_class, sizes = FAMILIES[family]
    tokenizer = tiny.make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(seed)
    # Some families' tokenizer class adds a token of its own when it is loaded.
    config_class(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = config_class(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)), tie_word_embeddings=tied, **sizes, **ids
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than the usual start: the greedy answer must not hang on a rounding.
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, added: int = 0, **settings) -> PeftModel:
    """Write an adapter with random B on `base`, with `added` new tokens, and return the live model in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if added:
        tokenizer.add_tokens([f"<new{i}>" for i in range(added)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(1)
    settings = {"target_modules": "all-linear", "init_lora_weights": False} | settings
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    adapted.save_pretrained(folder, save_embedding_layers=bool(added))
    tokenizer.save_pretrained(folder)
    return adapted.eval()


def run(base: Path, adapter: Path, target: Path, **keys) -> export.Export:
    values = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "export_dir": str(target)}
    return export.export(recipes.load(values | keys))


def greedy(model, tokenizer, prompt: str, count: int = 12) -> list[int]:
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    return model.generate(**inputs, generation_config=settings)[0].tolist()


@torch.inference_mode()
def compare(live, target: Path) -> tuple[float, bool]:
    """Return the largest logit difference to the export in `target`, and whether greedy answers are equal."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    differences, equal = [], []
    for prompt in PROMPTS:
        ids = tokenizer(prompt + "<new0>", return_tensors="pt").input_ids
        differences.append((live(ids).logits - model(ids).logits).abs().max().item())
        equal.append(greedy(live, tokenizer, prompt) == greedy(model, tokenizer, prompt))
    return max(differences), all(equal)


@pytest.mark.parametrize("added", [0, 3], ids=["as_is", "added_tokens"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_export_is_the_live_model(family, tied, added, tmp_path):
    base = make_base(tmp_path / "base", family, tied)
    live = make_adapter(base, tmp_path / "adapter", added)
    done = run(base, tmp_path / "adapter", tmp_path / "out", export_dtype="float32")
    difference, equal = compare(live, tmp_path / "out")
    assert difference <= 1e-4 and equal
    assert done.total_difference <= 1e-4 and done.greedy_equal_share == 1
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.config.tie_word_embeddings == tied
    assert saved.get_input_embeddings().weight.shape[0] == len(tokenizer)
    if added:
        assert len(tokenizer("<new2>").input_ids) == 1
    before = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(20)[None]
    assert (before(ids).logits - saved(ids).logits[..., : before.config.vocab_size]).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}],
    ids=["embedding", "head", "lora_on_embedding"],
)
def test_a_tied_head_that_was_trained_apart_stays_apart(settings, tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    live = make_adapter(base, tmp_path / "adapter", **settings)
    run(base, tmp_path / "adapter", tmp_path / "out", export_dtype="float32")
    difference, equal = compare(live, tmp_path / "out")
    assert difference <= 1e-4 and equal
    assert not AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}], ids=["whole", "lora"]
)
@pytest.mark.parametrize("engine", ["", "static"])
def test_a_tied_head_stays_apart_wherever_an_adapter_is_merged(settings, engine, tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    live = make_adapter(base, tmp_path / "adapter", **settings)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = live(ids).logits
        if engine:
            model = engines.build(engine, live, AutoTokenizer.from_pretrained(base))
        else:
            plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            model = chat.merge_before(plain, [str(tmp_path / "adapter")], base, str(base))
        assert (model(ids).logits - expected).abs().max() <= 1e-4


def test_number_format_shards_and_files(tmp_path):
    base = make_base(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    done = run(base, tmp_path / "adapter", tmp_path / "out", export_dtype="bfloat16")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto").dtype == torch.bfloat16
    assert done.reload_difference == 0 < done.total_difference
    names = {path.name for path in done.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert AutoTokenizer.from_pretrained(done.folder).chat_template == tiny.CHATML
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_weights_are_cut_at_export_size(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    live = make_adapter(base, tmp_path / "adapter")
    original = type(live.get_base_model()).save_pretrained
    seen = []

    def in_kilobytes(self, folder, max_shard_size):
        seen.append(max_shard_size)
        return original(self, folder, max_shard_size="100KB")

    monkeypatch.setattr(type(live.get_base_model()), "save_pretrained", in_kilobytes)
    run(base, tmp_path / "adapter", tmp_path / "out", export_dtype="float32", export_size=2)
    assert seen == ["2GB"] and len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert compare(live, tmp_path / "out") == (pytest.approx(0, abs=1e-4), True)


def test_a_run_folder_is_exported_and_its_card_says_what_it_is(tiny_recipe, tmp_path, capsys):
    done = train.train(recipes.load(tiny_recipe | {"overwrite_output_dir": True}))
    capsys.readouterr()
    keys = {"model_name_or_path": tiny_recipe["model_name_or_path"], "adapter_name_or_path": str(done.folder)}
    out = export.export(recipes.load(keys | {"export_dir": str(tmp_path / "out")}))
    # Notes on the recipe of the run belong to its training.
    assert "overwrite_output_dir" not in capsys.readouterr().out
    card = (out.folder / "README.md").read_text()
    for fact in ("sft.json", "lora sft", "| learning_rate | 0.01 |", "| train_loss |", "| greedy tokens equal |"):
        assert fact in card


def test_without_an_adapter_the_base_is_saved(tmp_path):
    base = make_base(tmp_path / "base")
    keys = {"model_name_or_path": str(base), "export_dir": str(tmp_path / "out"), "export_dtype": "float16"}
    done = export.export(recipes.load(keys))
    assert done.merge_difference == done.reload_difference == 0 < done.total_difference < 0.01


# Bad input: one line, exit code 2, nothing written, nothing touched.


def refused(base: Path, adapter: Path, target: Path, **keys) -> str:
    before = sorted(path.name for path in target.parent.iterdir())
    with pytest.raises(LabError) as caught:
        run(base, adapter, target, **keys)
    assert caught.value.exit_code == 2 and caught.value.fix
    assert sorted(path.name for path in target.parent.iterdir()) == before
    return caught.value.what


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, an adapter of it, and a place that does not exist yet."""
    base = make_base(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    return base, tmp_path / "adapter", tmp_path / "out"


def test_a_quantized_base_is_refused(pair):
    assert "4 bit" in refused(*pair, quantization_bit=4)
    config = json.loads((pair[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (pair[0] / "config.json").write_text(json.dumps(config))
    assert "quantized" in refused(*pair)


def test_an_adapter_of_another_base_is_refused(pair, tmp_path):
    same_shapes = make_base(tmp_path / "twin", seed=7)
    assert "were trained on" in refused(same_shapes, *pair[1:])
    other_family = make_base(tmp_path / "other", "gpt_neox")
    assert "were trained on" in refused(other_family, *pair[1:])


def test_a_run_knows_its_base_even_where_that_has_moved(tiny_recipe, tmp_path):
    done = train.train(recipes.load(tiny_recipe))
    twin = make_base(tmp_path / "twin", seed=7)
    config = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somewhere/else"
    (done.folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert "were trained on" in refused(twin, done.folder, tmp_path / "out")
    run(Path(tiny_recipe["model_name_or_path"]), done.folder, tmp_path / "out")


def test_an_adapter_that_does_not_fit_is_refused(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "require_own_base", lambda *_: None)
    wider = make_base(tmp_path / "wide", "olmo2")
    AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=258, **GROUPED | {"intermediate_size": 128})
    ).save_pretrained(wider)
    assert "size mismatch" in refused(wider, *pair[1:])


def test_an_adapter_without_effect_is_refused(pair):
    path = pair[1] / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weight * ("lora_B" not in name) for name, weight in weights.items()}, path)
    assert "has no effect" in refused(*pair)


def test_a_damaged_adapter_is_refused(pair, tmp_path):
    path = pair[1] / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path)
    assert "not finite" in refused(*pair)
    path.write_bytes(path.read_bytes()[:100])
    assert "are not usable" in refused(*pair)
    assert "not an adapter" in refused(pair[0], pair[0], tmp_path / "out")


def test_a_full_disk_is_refused_before_anything_is_written(pair, monkeypatch):
    monkeypatch.setattr(system_errors.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "free" in refused(*pair)


def test_a_disk_that_fills_up_leaves_nothing(pair, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(LabError) as caught:
        run(*pair)
    assert caught.value.exit_code == 1 and "No space left" in caught.value.what
    assert sorted(path.name for path in pair[2].parent.iterdir()) == ["adapter", "base"]


def test_an_existing_export_is_not_touched(pair):
    pair[2].mkdir()
    (pair[2] / "mine.txt").write_text("keep")
    assert "not empty" in refused(*pair)
    assert (pair[2] / "mine.txt").read_text() == "keep" and len(list(pair[2].iterdir())) == 1


def test_a_saved_model_that_differs_is_not_kept(pair, monkeypatch):
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.save_pretrained

    def spoiled(self, folder, **settings):
        original(self, folder, **settings)
        weights = load_file(Path(folder) / "model.safetensors")
        weights["model.norm.weight"] *= 1.5
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", spoiled)
    with pytest.raises(LabError, match="outputs changed once reloaded") as caught:
        run(*pair)
    assert caught.value.exit_code == 1 and not pair[2].exists()


def test_new_tokens_without_weights_are_refused(pair):
    tokenizer = AutoTokenizer.from_pretrained(pair[1])
    tokenizer.add_tokens(["<lost>"])
    tokenizer.save_pretrained(pair[1])
    assert "259 tokens" in refused(*pair)


def test_the_command_line_exports_and_refuses(pair, tmp_path, capsys):
    written = tmp_path / "merge.yaml"
    base, adapter, target = pair
    written.write_text(
        f"model_name_or_path: {base}\nadapter_name_or_path: {adapter}\ntemplate: chatml\nexport_dir: {target}\n"
        "export_size: 5\nexport_device: cpu\nexport_legacy_format: false\n"
    )
    assert cli.main(["export", str(written), "export_dtype=float32"]) == 0
    assert "100% of greedy tokens equal" in capsys.readouterr().out
    assert cli.main(["export", str(written)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert cli.main(["export", str(written), "export_legacy_format=true"]) == 2


def test_a_training_recipe_exports_what_its_run_has_trained(tiny_recipe, tmp_path, capsys):
    written, target = tmp_path / "train.yaml", tmp_path / "out"
    written.write_text(json.dumps(tiny_recipe))
    asked = ["export", str(written), f"export_dir={target}"]
    assert cli.main(asked) == 2
    assert "no trained weights" in capsys.readouterr().err and not target.exists()
    done = train.train(recipes.load(tiny_recipe | {"learning_rate": 0.1}))
    assert cli.main(asked) == 0
    run(Path(tiny_recipe["model_name_or_path"]), done.folder, tmp_path / "named")
    merged, named, base = (
        load_file(folder / "model.safetensors")
        for folder in (target, tmp_path / "named", Path(tiny_recipe["model_name_or_path"]))
    )
    assert all(torch.equal(weight, named[name]) for name, weight in merged.items())
    assert any(not torch.equal(weight, base[name]) for name, weight in merged.items())


# GGUF, read back by transformers' own reader; llama.cpp itself where it is installed.


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "allowed"), [("f16", 0.02), ("q8_0", 0.2), ("q4_0", 4.0)])
def test_gguf_reads_back_as_the_model(kind, allowed, tied, tmp_path):
    base = make_base(tmp_path / "base", tied=tied)
    live = make_adapter(base, tmp_path / "adapter")
    done = run(base, tmp_path / "adapter", tmp_path / "out", export_gguf=kind, export_dtype="float32")
    assert done.gguf == tmp_path / "out" / f"out-{kind}.gguf"
    read = AutoModelForCausalLM.from_pretrained(done.folder, gguf_file=done.gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(done.folder, gguf_file=done.gguf.name)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        assert (live(ids).logits - read(ids).logits).abs().max() <= allowed
    assert 0 < done.gguf_divergence < {"f16": 1e-4, "q8_0": 1e-2, "q4_0": 1}[kind]
    assert template_in(done.gguf) == tiny.CHATML
    assert ids.tolist() == tiny.make_tokenizer()(PROMPTS[0], return_tensors="pt").input_ids.tolist()


def template_in(path: Path) -> str:
    """Return the chat template that a GGUF file carries."""
    return GGUFReader(path).fields["tokenizer.chat_template"].contents()


def test_smaller_formats_are_smaller(tmp_path):
    base, sizes = make_base(tmp_path / "base"), {}
    for kind in ("f16", "q8_0", "q4_0"):
        gguf.write(base, tmp_path / f"{kind}.gguf", kind)
        sizes[kind] = (tmp_path / f"{kind}.gguf").stat().st_size
    assert sizes["f16"] > sizes["q8_0"] > sizes["q4_0"]


def test_query_rows_change_places_in_pairs():
    config = LlamaConfig(num_attention_heads=2, num_key_value_heads=1, hidden_size=8)
    rows = torch.arange(8.0)[:, None]
    llama, qwen = (gguf_families.FAMILIES[f"{name}ForCausalLM"] for name in ("Llama", "Qwen2"))
    moved = gguf_families.reordered(rows, "blk.0.attn_q.weight", config, llama)
    assert moved.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert gguf_families.reordered(rows, "blk.0.attn_v.weight", config, llama) is rows
    assert gguf_families.reordered(rows, "blk.0.attn_q.weight", config, qwen) is rows


def test_other_architectures_get_no_gguf(tmp_path):
    base = tmp_path / "base"
    config = StableLmConfig(vocab_size=258, **GROUPED)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tiny.make_tokenizer().save_pretrained(base)
    make_adapter(base, tmp_path / "adapter")
    what = refused(base, tmp_path / "adapter", tmp_path / "out", export_gguf="f16")
    assert "the architecture StableLmForCausalLM" in what


def test_a_qwen2_model_is_exported_in_four_bits(tmp_path, capsys):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=2048, num_key_value_heads=2, tie_word_embeddings=False, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    tiny.make_tokenizer().save_pretrained(tmp_path / "base")
    keys = {"model_name_or_path": str(tmp_path / "base"), "export_dir": str(tmp_path / "out"), "export_gguf": "q4_0"}
    (tmp_path / "merge.yaml").write_text(json.dumps(keys))
    assert cli.main(["export", str(tmp_path / "merge.yaml")]) == 0
    assert "nats per token" in capsys.readouterr().out
    size = (tmp_path / "out" / "out-q4_0.gguf").stat().st_size
    assert size < 0.35 * sum(weight.nbytes for weight in model.parameters())


def test_a_file_that_transformers_cannot_read_back_is_said(tmp_path, capsys):
    base = make_base(tmp_path / "base", "gpt_neox")
    keys = {"model_name_or_path": str(base), "export_dir": str(tmp_path / "out"), "export_gguf": "q8_0"}
    (tmp_path / "merge.yaml").write_text(json.dumps(keys))
    assert cli.main(["export", str(tmp_path / "merge.yaml")]) == 0
    assert "out-q8_0.gguf: written, not read back" in capsys.readouterr().out
    assert "not read back" in (tmp_path / "out" / "README.md").read_text()


def test_formats_that_only_llama_cpp_writes_name_their_package(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LabError, match="xllamacpp") as caught:
        run(*pair, export_gguf="q4_k_m")
    assert "pip install 'ftlab[gguf]'" in str(caught.value) and not pair[2].exists()


def test_an_unknown_tokenizer_gets_no_gguf(tmp_path):
    base = make_base(tmp_path / "base")
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(LabError, match="Whitespace"):
        gguf.write(base, tmp_path / "m.gguf", "f16")


def test_llama_cpp_gives_the_same_tokens(tmp_path, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp")
    # It does not load a vocabulary without a single merge.
    monkeypatch.setattr(tiny, "make_tokenizer", partial(tiny.make_tokenizer, [("t", "h")]))
    base = make_base(tmp_path / "base")
    gguf.write(base, tmp_path / "m.gguf", "f16")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    reader = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    assert reader.metadata["tokenizer.chat_template"] == tiny.CHATML
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        assert reader.tokenize(prompt.encode(), add_bos=False, special=True) == ids
        reader.reset()
        reader.eval(ids)
        with torch.inference_mode():
            ours = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(np.array(reader.scores[: len(ids)]) - ours).max() < 0.1


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"hidden_act": "gelu"}, "the activation gelu"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions of the type linear",
        ),
    ],
)
def test_a_llama_with_other_mathematics_gets_no_gguf(settings, what, tmp_path):
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(LabError, match=what):
        gguf.write(base, tmp_path / "m.gguf", "f16")


def test_a_weight_that_llama_cpp_has_no_name_for_gets_no_gguf(tmp_path):
    base = make_base(tmp_path / "base")
    values = load_file(base / "model.safetensors")
    save_file(values | {"model.layers.0.gate.scale": torch.ones(2)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(LabError, match=r"a weight called model\.layers\.0\.gate\.scale"):
        gguf.write(base, tmp_path / "m.gguf", "f16")


def test_rows_without_a_token_are_marked_unused_and_a_model_without_a_template_has_none(tmp_path):
    base = make_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    model.save_pretrained(base)
    (base / "chat_template.jinja").unlink()
    gguf.write(base, tmp_path / "m.gguf", "f16")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[-3:] == [TokenType.UNUSED] * 3 and TokenType.UNUSED not in kinds[:-3]
    assert kinds[tokenizer.convert_tokens_to_ids("<|im_end|>")] == TokenType.CONTROL
    assert "tokenizer.chat_template" not in fields
