"""Talking to a model: batched, streamed, cut at a stop string, with and without its adapter."""

import pytest
import serving
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ftlab import tokens
from ftlab.recipe import read as recipes
from ftlab.runs import chat, train

CONVERSATIONS = [[{"role": "user", "content": "hi " * n}] for n in (1, 9, 4, 2, 7)]


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return serving.load(tiny_model_dir)


def test_a_batch_answers_as_one_by_one_does(loaded):
    together = chat.replies(*loaded, CONVERSATIONS, max_new_tokens=10, batch_size=2)
    assert together == [chat.reply(*loaded, messages, max_new_tokens=10) for messages in CONVERSATIONS]
    assert len(set(together)) > 1


def test_sampling_goes_by_the_names_of_generation_config(loaded):
    torch.manual_seed(0)
    sampled = chat.reply(*loaded, CONVERSATIONS[0], do_sample=True, temperature=1.5, top_k=50, max_new_tokens=20)
    assert sampled != chat.reply(*loaded, CONVERSATIONS[0], max_new_tokens=20)
    greedy = chat.reply(*loaded, CONVERSATIONS[0], do_sample=True, top_k=1, max_new_tokens=20)
    assert greedy == chat.reply(*loaded, CONVERSATIONS[0], max_new_tokens=20)


def test_an_answer_ends_before_a_stop_string(loaded):
    whole = "".join(chat.stream(*loaded, CONVERSATIONS[0], max_new_tokens=30))
    stop = whole[6:8]
    cut = "".join(chat.stream(*loaded, CONVERSATIONS[0], max_new_tokens=30, stop_strings=[stop]))
    assert cut == whole[: whole.index(stop)]
    assert chat.replies(*loaded, CONVERSATIONS[:1], max_new_tokens=30, stop_strings=[stop]) == [cut.strip()]


def test_beams_answer_in_one_piece(loaded):
    model, tokenizer = loaded
    pieces = list(chat.stream(model, tokenizer, CONVERSATIONS[0], max_new_tokens=10, num_beams=3))
    ids = torch.tensor([tokens.prompt(tokenizer, CONVERSATIONS[0])])
    best = model.generate(ids, max_new_tokens=10, do_sample=False, num_beams=3, pad_token_id=tokenizer.pad_token_id)
    assert pieces == [tokenizer.decode(best[0, ids.shape[1] :], skip_special_tokens=True).strip()]
    assert pieces != [chat.reply(model, tokenizer, CONVERSATIONS[0], max_new_tokens=10)]
    model.generation_config.num_beams = 3
    try:
        assert list(chat.stream(model, tokenizer, CONVERSATIONS[0], max_new_tokens=10)) == pieces
    finally:
        model.generation_config.num_beams = None


def test_the_adapter_is_on_or_off_for_one_request(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    base = chat.reply(model, tokenizer, CONVERSATIONS[0], max_new_tokens=10, adapter=False)
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    assert chat.reply(tuned, tokenizer, CONVERSATIONS[0], max_new_tokens=10) != base
    assert chat.reply(tuned, tokenizer, CONVERSATIONS[0], max_new_tokens=10, adapter=False) == base
    assert chat.replies(tuned, tokenizer, CONVERSATIONS[:1], max_new_tokens=10, adapter=False) == [base]


def test_leaving_a_stream_stops_the_generation(loaded, monkeypatch):
    model, tokenizer = loaded
    made = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: made.append(generate(**options)))
    pieces = chat.stream(model, tokenizer, CONVERSATIONS[0], max_new_tokens=5000, eos_token_id=-1)
    next(pieces)
    pieces.close()
    assert made[0].shape[1] < 4000


def test_a_failure_while_streaming_is_raised_where_it_is_read(loaded):
    with pytest.raises(ValueError, match="temperature"):
        chat.reply(*loaded, CONVERSATIONS[0], do_sample=True, temperature=-1.0)


def test_tools_are_rendered_for_a_template_that_knows_them(loaded):
    model, tokenizer = loaded
    seen = []
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ tools | tojson if tools else 'none' }}" + template
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chat, "padded", lambda model, tokenizer, prompts: seen.append(prompts[0]) or padded(prompts))
            list(chat.stream(model, tokenizer, CONVERSATIONS[0], tools=[{"name": "clock"}], max_new_tokens=1))
    finally:
        tokenizer.chat_template = template
    assert tokenizer.decode(seen[0]).startswith('[{"name": "clock"}]')


def padded(prompts):
    ids = torch.tensor(prompts)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_recipe_whose_run_has_no_weights_is_answered_by_its_base_and_says_so(tiny_recipe, capsys):
    recipe = recipes.load(tiny_recipe)
    assert not isinstance(chat.from_recipe(recipe)[0], PeftModel)
    note = f"{recipe.output_dir} has no trained weights yet; using {recipe.model_name_or_path}"
    assert note in capsys.readouterr().out
    train.train(recipe)
    capsys.readouterr()
    assert isinstance(chat.from_recipe(recipe)[0], PeftModel)
    assert "no trained weights" not in capsys.readouterr().out
