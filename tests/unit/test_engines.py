"""Engines: same tokens where the weights are the same, close where they are not, one line where one cannot run."""

import typing

import families
import pytest
import serving
import tiny
import torch
from lessons import definitions
from peft import LoraConfig, get_peft_model
from torch import nn

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import Recipe
from ftlab.runs import chat, engines, pick_engine, weight_only

# No token has this id.
ENDLESS = 100_000
MESSAGES = [{"role": "user", "content": "What is 2 plus 3?"}]
HAS_LLAMA_CPP = engines.find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.skipif(
    not HAS_LLAMA_CPP, reason="llama-cpp-python is an extra that make does not install"
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A tiny model whose vocabulary llama.cpp loads (it wants a merge) and whose sizes the products take."""
    with pytest.MonkeyPatch.context() as patch:
        maker = tiny.make_tokenizer
        patch.setattr(tiny, "make_tokenizer", lambda: maker([("t", "h")]))
        model, tokenizer = serving.load(tiny.make_model(tmp_path_factory.mktemp("model")))
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than the usual start, so that a rounding shows in the probabilities.
            weight.add_(torch.randn_like(weight) * 0.1)
    return model, tokenizer


def ids_of(model, **fields):
    prompt = torch.tensor([[5, 17, 90, 33, 60]])
    return model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **fields)[0].tolist()


@pytest.mark.parametrize("name", ["loop", "static"])
def test_greedy_tokens_are_those_of_generate(name, loaded):
    greedy = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": ENDLESS}
    assert ids_of(engines.build(name, *loaded), **greedy) == ids_of(loaded[0], **greedy)


@pytest.mark.parametrize("family", [*families.SIZES, *families.WITH_STATE])
def test_every_family_is_looped_over_rightly_or_refused(family):
    model, greedy = families.model_of(family), {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ENDLESS}
    assert engines.context_length(model.config) >= 256
    if family in ("mamba", "mamba2", "rwkv", "minimax"):
        for name in ("loop", "int8"):
            with pytest.raises(LabError, match=f"{family} keeps another state"):
                engines.build(name, model, tiny.make_tokenizer())
        assert pick_engine.pick(model, tiny.make_tokenizer()) is model
        return
    assert ids_of(engines.build("loop", model, None), **greedy) == ids_of(model, **greedy)
    assert len(ids_of(engines.build("int8", model, None), **greedy)) == 13


@pytest.mark.parametrize("family", families.SIZES)
def test_a_static_cache_gives_the_same_tokens(family):
    model, greedy = families.model_of(family), {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ENDLESS}
    assert ids_of(engines.build("static", model, None), **greedy) == ids_of(model, **greedy)


@pytest.mark.parametrize("new_decoder_architecture", [True, False])
def test_falcon_with_alibi_has_a_loop_but_no_static_cache(new_decoder_architecture):
    model = families.model_of("falcon", alibi=True, new_decoder_architecture=new_decoder_architecture, num_kv_heads=2)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ENDLESS}
    with pytest.raises(LabError, match=r"^static: .*Falcon with ALiBi"):
        engines.build("static", model, None)
    assert ids_of(engines.build("loop", model, None), **greedy) == ids_of(model, **greedy)
    assert len(ids_of(engines.build("int4", model, None), **greedy)) == 13


def test_a_conversation_with_a_model_without_a_longest_text_has_a_context(tmp_path, monkeypatch, capsys):
    families.model_of("mamba").save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("builtins.input", lambda _: "/exit")
    assert cli.main(["chat", str(tmp_path)]) == 0
    assert str(engines.CONTEXT) in capsys.readouterr().out.replace(",", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"top_k": 0},
        {},
        {"repetition_penalty": 1.5, "temperature": 2.0},
    ],
)
def test_drawn_tokens_are_those_of_generate(fields, loaded):
    fields = {"max_new_tokens": 30, "do_sample": True, "eos_token_id": ENDLESS} | fields
    drawn = []
    for model in (loaded[0], engines.build("loop", *loaded)):
        torch.manual_seed(3)
        drawn.append(ids_of(model, **fields))
    assert drawn[0] == drawn[1]


def test_an_answer_ends_at_its_end_token_at_the_limit_and_at_the_context(loaded):
    model, tokenizer = loaded
    loop = engines.build("loop", model, tokenizer)
    free = ids_of(loop, max_new_tokens=9, eos_token_id=ENDLESS)
    assert len(free) == 14
    assert ids_of(loop, max_new_tokens=9, eos_token_id=[free[7]]) == free[: free.index(free[7], 5) + 1]
    loop.context = 8
    assert ids_of(loop, max_new_tokens=9, eos_token_id=ENDLESS) == free[:8]
    loop.context = 5
    with pytest.raises(LabError, match="5 tokens"):
        ids_of(loop)


def test_chat_streams_from_any_engine(loaded):
    model, tokenizer = loaded
    whole = chat.reply(model, tokenizer, MESSAGES, max_new_tokens=30)
    loop = engines.build("loop", model, tokenizer)
    assert "".join(chat.stream(loop, tokenizer, MESSAGES, max_new_tokens=30)).strip() == whole
    stop = whole[6:8]
    assert chat.reply(loop, tokenizer, MESSAGES, max_new_tokens=30, stop_strings=[stop]) == chat.reply(
        model, tokenizer, MESSAGES, max_new_tokens=30, stop_strings=[stop]
    )


def test_leaving_a_stream_stops_the_loop(loaded):
    model, tokenizer = loaded
    loop = engines.build("loop", model, tokenizer)
    steps = []
    begin = loop.begin
    loop.begin = lambda: (lambda step: lambda ids: steps.append(1) or step(ids))(begin())
    pieces = chat.stream(loop, tokenizer, MESSAGES, max_new_tokens=400, eos_token_id=ENDLESS)
    next(pieces)
    pieces.close()
    assert len(steps) < 300


@pytest.mark.parametrize("fields", [{"num_beams": 2}, {"min_p": 0.1}, {"prompt_lookup_num_tokens": 3}])
def test_what_a_loop_does_not_know_is_refused(fields, loaded):
    with pytest.raises(LabError, match="huggingface"):
        ids_of(engines.build("loop", *loaded), **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "allowed"), [(weight_only.Int8Linear, 0.01), (weight_only.Int4Linear, 0.15)])
def test_a_layer_of_fewer_bits_stays_close(kind, allowed, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(128, 64).to(dtype)
    x = torch.randn(2, 3, 128).to(dtype)
    exact, found = linear(x).float(), kind(linear)(x).float()
    assert found.shape == exact.shape
    assert (found - exact).norm() / exact.norm() < allowed + (0.01 if dtype == torch.bfloat16 else 0)
    assert sum(buffer.numel() * buffer.element_size() for buffer in kind(linear).buffers()) < linear.weight.nbytes


def test_four_bits_keep_what_was_four_bits():
    """As with weights that come from a Q4_1 file: rounding them again finds the same sixteen levels."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (32, 4, 32))
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    linear = nn.Linear(128, 32, bias=False)
    linear.weight.data = (codes * 0.03125 - 0.25).flatten(1)
    # One weight at a time: what is multiplied is exact in bfloat16 too.
    x = torch.eye(128)
    assert torch.allclose(weight_only.Int4Linear(linear)(x), linear(x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lesson_s_eight_bit_layer_is_this_one(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(128, 64, bias=False).to(dtype)
    x = torch.randn(3, 128).to(dtype)
    (by_hand,) = definitions("09_inference", "Int8Linear", nn=nn, torch=torch)
    assert by_hand(linear)(x).equal(weight_only.Int8Linear(linear)(x))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_leaves_its_original_alone(bits, loaded):
    model, _ = loaded
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    small = weight_only.quantized(model, bits)
    kinds = {type(layer) for layer in small.modules()}
    assert (weight_only.Int8Linear if bits == 8 else weight_only.Int4Linear) in kinds
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert not any(isinstance(layer, weight_only.Int8Linear | weight_only.Int4Linear) for layer in model.modules())
    assert small.get_input_embeddings().weight is model.get_input_embeddings().weight


def test_an_adapter_is_part_of_every_engine(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    expected = chat.reply(tuned, tokenizer, MESSAGES, max_new_tokens=10)
    assert engines.build("huggingface", tuned, tokenizer) is tuned
    assert chat.reply(pick_engine.pick(tuned, tokenizer, "loop"), tokenizer, MESSAGES, max_new_tokens=10) == expected


def test_every_engine_is_measured_said_and_compared(loaded, capsys):
    rows = pick_engine.compare(*loaded, new_tokens=6)
    said = capsys.readouterr().out
    assert [row.name for row in rows][:4] == ["huggingface", "loop", "int8", "int4"]
    assert all(row.tokens_per_second > 0 and str(row) in said for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["loop"].divergence < 1e-6 < by_name["int8"].divergence < by_name["int4"].divergence
    if not HAS_LLAMA_CPP:
        assert said.count("llama.cpp is not installed; pip install") == 2


def rows_of(**rates):
    """Return what `measured` would yield: name -> (tokens per second, divergence)."""
    return [(pick_engine.Measured(name, *numbers), name) for name, numbers in rates.items()]


def test_auto_takes_the_fastest_that_stays_close(loaded, monkeypatch, capsys):
    found = rows_of(
        huggingface=(10, 0.0), loop=(12, 0.0), int8=(20, pick_engine.LIMIT), int4=(30, 2 * pick_engine.LIMIT)
    )
    monkeypatch.setattr(pick_engine, "measured", lambda *given: iter(found))
    assert pick_engine.pick(*loaded) == "int8"
    assert "using int8" in capsys.readouterr().out
    assert isinstance(pick_engine.pick(*loaded, "int4"), engines.Loop), "a named engine is not measured away"


def test_a_missing_library_is_one_line_with_the_fix(loaded, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"llama.cpp is not installed\n.*pip install") as error:
        pick_engine.pick(*loaded, "llama.cpp")
    assert error.value.exit_code == 2


@needs_llama_cpp
def test_llama_cpp_answers_as_the_model_does(loaded):
    model, tokenizer = loaded
    (row,) = pick_engine.compare(model, tokenizer, ["llama.cpp"], new_tokens=12)
    assert row.divergence < 0.01
    engine = engines.build("llama.cpp", model, tokenizer)
    assert chat.reply(engine, tokenizer, MESSAGES, max_new_tokens=8)
    assert ids_of(engine, max_new_tokens=5, eos_token_id=ENDLESS) == ids_of(
        engine, max_new_tokens=5, eos_token_id=ENDLESS
    )


def test_keys_command_line_and_engines_name_the_same(tiny_model_dir, monkeypatch):
    names = {"auto", *engines.KINDS}
    assert set(typing.get_args(Recipe.model_fields["infer_backend"].annotation)) == names | {"hf"}
    loads = []
    monkeypatch.setattr(pick_engine, "pick", lambda model, tokenizer, name: loads.append(name) or model)
    monkeypatch.setattr("builtins.input", lambda prompt: "/exit")
    for name in sorted(names):
        assert cli.main(["chat", str(tiny_model_dir), "--backend", name]) == 0
    assert loads == sorted(names)


def test_a_recipe_names_its_engine(tiny_model_dir, monkeypatch):
    keys = {"model_name_or_path": str(tiny_model_dir), "stage": "sft"}
    model, _ = chat.from_recipe(recipes.load(keys | {"infer_backend": "loop"}))
    assert isinstance(model, engines.Loop)
    assert not isinstance(chat.from_recipe(recipes.load(keys | {"infer_backend": "hf"}))[0], engines.Loop)
    with pytest.raises(LabError, match="quantization_bit"):
        recipes.load(keys | {"infer_backend": "int4", "quantization_bit": 4})
    assert cli.main(["chat", "recipes/chat.yaml", "--backend", "auto"]) == 2
