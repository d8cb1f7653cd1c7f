"""`ftlab eval`: held-out examples, calls compared as calls, the interval; nothing scored as trained that was not."""

import json
import re

import pytest
from transformers import AutoTokenizer

from ftlab import evaluate, responses, tokens
from ftlab.recipe import read as recipes
from ftlab.runs import dataset, evaluation, folder, train

TOOLS = [
    {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }
]


@pytest.fixture
def calls(tmp_path):
    """A data set whose answers are tool calls."""
    asked = [
        {
            "conversations": [
                {"from": "human", "value": f"Weather in city {number}?"},
                {
                    "from": "function_call",
                    "value": json.dumps({"name": "weather", "arguments": {"city": str(number), "days": 3}}),
                },
            ],
            "tools": json.dumps(TOOLS),
        }
        for number in range(12)
    ]
    (tmp_path / "calls.json").write_text(json.dumps(asked))
    return str(tmp_path / "calls.json")


def none_of(n: int) -> dict[str, float]:
    """Return the interval of no right answer among n."""
    low, high = evaluate.interval(0, n)
    return {"low": low, "high": high, "n": n}


def test_a_random_model_calls_no_tool_right(tiny_recipe, calls):
    made = recipes.load(tiny_recipe | {"dataset": calls, "cutoff_len": 512, "max_steps": 1})
    nothing = {"exact_match": 0, "rows": 12, "intervals": {"exact_match": none_of(12)}}
    assert evaluation.score(made, figures=("exact_match",))["base"] == nothing
    train.train(made)
    found = evaluation.score(made, figures=("exact_match",))
    assert found["base"] == nothing
    assert found["tuned"] == nothing | {"paired": {"gained": 0, "lost": 0, "p": 1.0}}


@pytest.mark.parametrize("held_out", ["eval_dataset", "val_size", "dataset"])
def test_examples_that_are_scored_as_cut_are_counted(tiny_recipe, tmp_path, capsys, held_out):
    asked = [{"instruction": f"Question {n}?", "output": "yes " * (100 if n % 2 else 1)} for n in range(8)]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    data = {"dataset": str(tmp_path / "asked.json")}
    data |= {"val_size": 7} if held_out == "val_size" else {held_out: data["dataset"]}
    evaluation.score(recipes.load(tiny_recipe | data | {"cutoff_len": 128}), figures=("loss",))
    out = capsys.readouterr().out
    cut = int(re.search(r"(\d+) cut to 128 tokens", out)[1])
    assert cut >= 3 and f"eval: {cut} examples are scored as cut to 128 tokens: " in out
    evaluation.score(recipes.load(tiny_recipe | data | {"cutoff_len": 1024}), figures=("loss",))
    assert "scored as cut" not in capsys.readouterr().out


def test_calls_are_compared_as_calls_with_the_tools_in_the_prompt(tiny_recipe, calls, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe["model_name_or_path"])
    asked = []

    def turned(one, examples, *_):
        asked.extend(tokenizer.decode(prompt) for prompt, _ in examples.pairs)
        numbers = [text.split("Weather in city ")[1].split("?")[0] for text in asked]
        texts = [f'{{"arguments": {{"days": 3, "city": "{number}"}}, "name": "weather"}}' for number in numbers]
        # One is wrong: another argument.
        texts[0] = texts[0].replace('"days": 3', '"days": 4')
        return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]

    monkeypatch.setattr(evaluation, "generate_greedy", turned)
    made = recipes.load(tiny_recipe | {"dataset": calls, "cutoff_len": 512})
    found = evaluation.score(made, figures=("exact_match", "tool_calls"))
    assert found["base"]["exact_match"] == found["base"]["tool_calls"] == pytest.approx(11 / 12)
    assert all("The weather in a city." in text for text in asked) and len(asked) == 12
    row = {"messages": [{"role": "user", "content": "Weather in city 0?"}], "tools": [{"function": TOOLS[0]}]}
    assert asked[0] == tokenizer.decode(tokens.prompt(tokenizer, row["messages"], row["tools"]))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": 0.2, "top_p": 0.9, "do_sample": True}, ["do_sample", "temperature", "top_p"]),
        ({"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": 9}, []),
        ({"num_beams": 4}, ["num_beams"]),
        ({}, []),
    ],
)
def test_keys_that_greedy_answers_do_not_follow_are_named(tiny_recipe, keys, said):
    assert evaluation.sampling_keys(recipes.load(tiny_recipe | {"predict_with_generate": True} | keys)) == said


def test_eval_scores_what_the_run_held_out(tiny_recipe, capsys):
    values = tiny_recipe | {"val_size": 4, "default_system": "Be brief."}
    made = recipes.load(values)
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe["model_name_or_path"])
    trained, validated = dataset.splits(made, tokenizer)
    chosen = evaluation.held_out(made, tokenizer, None)
    assert chosen == list(validated) and len(chosen) == 4
    assert not {str(one["input_ids"]) for one in chosen} & {str(one["input_ids"]) for one in trained}
    assert "Be brief." in tokenizer.decode(responses.split(chosen[0])[0])
    train.train(made)
    capsys.readouterr()
    found = evaluation.score(made)
    assert found["tuned"]["rows"] == 4 and "held out other" not in capsys.readouterr().out
    assert all(words in evaluation.scores_table(found) for words in ("n ", "95% interval", "     4"))
    # Another split: the run may have seen these.
    evaluation.score(recipes.load(values | {"seed": 7}), figures=("loss",))
    assert "held out other examples" in capsys.readouterr().out


def test_a_folder_that_was_never_trained_has_no_tuned_score(tiny_recipe, capsys):
    found = evaluation.score(recipes.load(tiny_recipe), figures=("loss",))
    assert set(found) == {"base"} and "no trained weights yet" in capsys.readouterr().out
    train.train(recipes.load(tiny_recipe))
    evaluation.score(recipes.load(tiny_recipe | {"lora_rank": 8}), figures=("loss",))
    assert "settings that differ from this recipe: lora_rank: 4 -> 8" in capsys.readouterr().out


def test_a_whole_model_is_scored_beside_its_base(tiny_recipe):
    keys = {"finetuning_type": "full", "learning_rate": 1e-3, "val_size": 4, "eval_strategy": "steps", "eval_steps": 6}
    made = recipes.load(tiny_recipe | keys | {"bf16": False})
    before = evaluation.score(made, figures=("loss",))
    run = train.train(made)
    found = evaluation.score(made, figures=("loss",))
    assert found["base"] == before["base"] and found["tuned"]["loss"] < found["base"]["loss"]
    log = [json.loads(line) for line in (run.folder / folder.LOG).read_text().splitlines()]
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert found["tuned"]["loss"] == pytest.approx(evaluated[-1], abs=5e-3)


def test_a_prompt_that_is_trained_on_is_not_an_answer(tiny_recipe):
    made = recipes.load(tiny_recipe | {"val_size": 4, "train_on_prompt": True})
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe["model_name_or_path"])
    prompt, answer = responses.split(evaluation.held_out(made, tokenizer, None)[0])
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(answer).startswith("It is ")
