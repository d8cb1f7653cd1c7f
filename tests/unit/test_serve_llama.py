"""Serving with llama.cpp: the model's probabilities in company, with a shared prefix and after others had to go.

Its products round differently with the number of rows, so that probabilities are compared, not tokens. Everything also
runs with a stand-in that computes with the transformers model: `make` does not install the library.
"""

import random
import sys

import pytest
import serving
import tiny
import torch
from llama_stand_in import stand_in
from peft import LoraConfig, get_peft_model
from test_serve_batch import ask, collect, ids, put
from transformers import LlamaConfig, LlamaForCausalLM
from waiting import until

from ftlab.apps import cli
from ftlab.apps.serve import loading, run
from ftlab.apps.serve.engine import Engine
from ftlab.apps.serve.job import Piece
from ftlab.errors import LabError
from ftlab.runs import engines

INSTALLED = engines.find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.skipif(not INSTALLED, reason="llama-cpp-python is an extra that make does not install")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny model whose vocabulary llama.cpp loads: it wants a merge."""
    with pytest.MonkeyPatch.context() as patch:
        maker = tiny.make_tokenizer
        patch.setattr(tiny, "make_tokenizer", lambda: maker([("t", "h")]))
        return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model_dir):
    model, tokenizer = serving.load(model_dir)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than the usual start: no two tokens are equally likely.
            weight.add_(torch.randn_like(weight) * 0.1)
    return model, tokenizer


@pytest.fixture(params=["stand-in", pytest.param("llama.cpp", marks=needs_llama_cpp)])
def library(request, loaded, monkeypatch):
    """The module `llama_cpp`."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(loaded[0]))
        monkeypatch.setattr(engines, "find_spec", lambda name: True)
    # It is imported anew, with the module that is there now.
    monkeypatch.delitem(sys.modules, "ftlab.apps.serve.llama_batch", raising=False)
    yield pytest.importorskip("llama_cpp")
    sys.modules.pop("ftlab.apps.serve.llama_batch", None)


@pytest.fixture
def start(loaded, library):
    """Return a function that starts an engine without an end token."""
    started = []

    def begin(**options) -> Engine:
        engine = Engine(*loaded, backend="llama.cpp", **{"cache_tokens": 2048} | options)
        started.append(engine)
        for batch in engine.batches.values():
            batch.ends = frozenset()
        return engine

    yield begin
    for engine in started:
        engine.close()


def compare(pieces: list[Piece], prompt: list[int], model) -> None:
    """Check the log probability of every token of an answer against the model's own."""
    tokens = ids(pieces)
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(tokens)), tokens].tolist()
    assert [piece.likelihood.logprob for piece in pieces if piece.likelihood] == pytest.approx(expected, abs=0.25)


def reads(engine: Engine) -> list[int]:
    """Return a list that is filled with how many tokens each call of llama.cpp reads."""
    (batch,) = engine.batches.values()
    counts, evaluate = [], batch.evaluate

    def counted(new):
        counts.append(sum(map(len, new.values())))
        return evaluate(new)

    batch.evaluate = counted
    return counts


def test_tokens_are_as_likely_as_alone_though_rows_join_and_leave(start, loaded):
    chance = random.Random(0)
    prompts = [[chance.randrange(200) for _ in range(chance.randint(1, 60))] for _ in range(40)]
    lengths = [chance.randint(1, 16) for _ in prompts]
    engine = start(max_batch=8)
    queues = [put(engine, p, max_tokens=n)[1] for p, n in zip(prompts, lengths, strict=True)]
    for prompt, length, queue in zip(prompts, lengths, queues, strict=True):
        pieces = collect(queue)
        assert len(ids(pieces)) == length
        compare(pieces, prompt, loaded[0])


def test_the_next_turn_of_a_conversation_reads_what_is_new(start, loaded):
    engine = start()
    prompt = list(range(30))
    (first,) = ask(engine, [prompt], max_tokens=6)
    counts = reads(engine)
    turn = [*prompt, *ids(first), 40, 41, 42]
    (second,) = ask(engine, [turn], max_tokens=3)
    # The last token of the first answer was never read.
    assert counts == [4, 1, 1]
    compare(second, turn, loaded[0])


def test_a_prefix_is_shared_with_an_answer_in_progress(start, loaded):
    engine = start()
    counts = reads(engine)
    system = list(range(40))
    queues = [put(engine, [*system, 50 + n], max_tokens=5)[1] for n in range(3)]
    for n, queue in enumerate(queues):
        compare(collect(queue), [*system, 50 + n], loaded[0])
    assert sum(counts) == 41 + 1 + 1 + 3 * 4


def test_the_same_prompt_again_reads_its_last_token(start, loaded):
    engine = start()
    ask(engine, [[1, 2, 3, 4]], max_tokens=3)
    counts = reads(engine)
    (again,) = ask(engine, [[1, 2, 3, 4]], max_tokens=3)
    compare(again, [1, 2, 3, 4], loaded[0])
    assert counts == [1, 1, 1]


def test_what_is_kept_makes_room_for_new_prompts(start, loaded):
    engine = start(cache_tokens=256, max_batch=4)
    (batch,) = engine.batches.values()
    for n in range(5):
        (pieces,) = ask(engine, [[n] * 100], max_tokens=20)
        compare(pieces, [n] * 100, loaded[0])
        assert sum(map(len, batch.held)) <= 256
    assert [n for held in batch.held for n in held[:1]] == [3, 4]


def test_a_long_prompt_is_read_in_parts(start):
    engine = start(cache_tokens=2048)
    counts = reads(engine)
    (pieces,) = ask(engine, [list(range(200)) * 5], max_tokens=2)
    assert counts == [512, 488, 1] and len(ids(pieces)) == 2


def test_a_failed_call_ends_its_rows_and_nobody_else_s(start, library, monkeypatch):
    engine = start()
    good = ids(ask(engine, [[1, 2, 3]], max_tokens=4)[0])
    with monkeypatch.context() as patch:
        patch.setattr(library, "llama_decode", lambda context, batch: -1)
        (pieces,) = ask(engine, [[1, 2, 3]], max_tokens=4)
    assert pieces[-1].finish == "error"
    assert ids(ask(engine, [[1, 2, 3]], max_tokens=4)[0]) == good
    # The last piece comes a moment before its row is dropped.
    until(lambda: engine.running == 0)


def test_a_short_common_prefix_is_copied_and_a_model_that_keeps_no_part_reads_all(start, library, loaded, monkeypatch):
    engine = start(max_batch=1)
    ask(engine, [[1, 2, *range(10, 40)]], max_tokens=1)
    counts = reads(engine)
    # Little of what the only sequence holds is the prompt's, which takes it all the same.
    (pieces,) = ask(engine, [[1, 2, 3, 4]], max_tokens=1)
    compare(pieces, [1, 2, 3, 4], loaded[0])
    remove = library.llama_memory_seq_rm
    monkeypatch.setattr(library, "llama_memory_seq_rm", lambda memory, n, p, end: p < 0 and remove(memory, n, p, end))
    (pieces,) = ask(engine, [[1, 2, 3, 5]], max_tokens=1)
    compare(pieces, [1, 2, 3, 5], loaded[0])
    assert counts == [2, 4]


@needs_llama_cpp
def test_an_adapter_is_merged_and_has_no_twin_without_it(model_dir, tmp_path):
    model, tokenizer = serving.load(model_dir)
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False, r=8))
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    served = loading.load(str(model_dir), [str(tmp_path / "adapter")], "tuned", backend="llama.cpp")
    assert list(served.served) == ["tuned"]
    engine = Engine(served.model, served.tokenizer, backend=served.backend, cache_tokens=256)
    (pieces,) = ask(engine, [[5, 6, 7]], max_tokens=1, logprobs=5)
    engine.close()
    expected = tuned.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    for token, logprob in pieces[0].likelihood.top:
        assert logprob == pytest.approx(float(expected[token]), abs=0.05)


def test_keys_and_values_have_16_bits_where_8_do_not_fit_the_model(start, library, monkeypatch):
    tried, init = [], library.llama_init_from_model

    def refuses_8_bits(model, settings):
        tried.append((settings.type_k, settings.type_v))
        return init(model, settings) if settings.type_k == library.GGML_TYPE_F16 else None

    monkeypatch.setattr(library, "llama_init_from_model", refuses_8_bits)
    assert len(ids(ask(start(), [[1, 2, 3]], max_tokens=2)[0])) == 2
    assert tried == [(8, 8), (1, 1)]


@needs_llama_cpp
def test_an_answer_does_not_depend_on_what_was_in_the_cache(tmp_path):
    # The heads of the other tests are smaller than a block of 8-bit values.
    config = LlamaConfig(
        vocab_size=259, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny.make_tokenizer([("t", "h")]).save_pretrained(tmp_path)
    engine = Engine(*serving.load(tmp_path), backend="llama.cpp", cache_tokens=2048)
    chance = random.Random(0)
    prompt = [chance.randrange(200) for _ in range(300)]
    (first,) = ask(engine, [prompt], max_tokens=8, logprobs=1)
    counts = reads(engine)
    for length in (299, 150, 20):
        (batch,) = engine.batches.values()
        for number in range(len(batch.held)):
            batch.cut(number, min(length, len(batch.held[number])))
        (again,) = ask(engine, [prompt], max_tokens=8, logprobs=1)
        assert [piece.likelihood for piece in again] == [piece.likelihood for piece in first]
    engine.close()
    assert [count for count in counts if count > 1] == [150, 280]


def test_a_cache_without_memory_is_an_error(start, library, monkeypatch):
    monkeypatch.setattr(library, "llama_init_from_model", lambda model, settings: None)
    with pytest.raises(MemoryError, match="2048 tokens"):
        start()


def test_the_command_line_names_the_engines_of_the_server(monkeypatch):
    monkeypatch.setattr(run, "serve", lambda *given: named.append(given[-1]))
    named: list[str] = []
    for name in loading.BACKENDS:
        assert cli.main(["serve", "smollm2-135m", "--backend", name]) == 0
    assert named == ["huggingface", "llama.cpp", "llama.cpp-q4"]


def test_a_missing_library_is_one_line_with_the_fix(loaded, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"llama.cpp is not installed\n.*pip install") as error:
        Engine(*loaded, backend="llama.cpp")
    assert error.value.exit_code == 2


def test_adapters_with_names_are_not_served_by_llama_cpp(model_dir, tmp_path):
    model, _ = serving.load(model_dir)
    get_peft_model(model, LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path / "a")
    with pytest.raises(LabError, match="one merged adapter"):
        loading.load(str(model_dir), [f"a={tmp_path / 'a'}"], backend="llama.cpp")


def test_a_recipe_names_the_engine_of_the_server(model_dir, tmp_path):
    recipe = tmp_path / "chat.yaml"
    recipe.write_text(f"model_name_or_path: {model_dir}\nstage: sft\ninfer_backend: llama.cpp-q4\n")
    assert loading.load(str(recipe)).backend == "llama.cpp-q4"
    assert loading.load(str(recipe), overrides=["infer_backend=hf"]).backend == "huggingface"
    with pytest.raises(LabError, match=r"llama\.cpp-q4"):
        loading.load(str(recipe), overrides=["infer_backend=int8"])
    with pytest.raises(LabError, match="is a recipe"):
        loading.load(str(recipe), backend="llama.cpp")
