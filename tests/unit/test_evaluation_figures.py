"""`ftlab eval` by its keys: which figures, predictions as LLaMA-Factory writes them, samples, stops, bad input."""

import io
import json
import math
import sys

import pytest

from ftlab import evaluate, figures, packages
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import callbacks, evaluation, folder, greedy, predictions, questions, train, watch

ALL = ("loss", "accuracy", "exact_match", "contains", "json", "bleu", "rouge")


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """Rows whose answers are JSON, and one whose answer is not."""
    rows = [
        {"instruction": f"Order {n}", "output": json.dumps({"n": n, "name": None}) if n else "Nothing."}
        for n in range(5)
    ]
    path = tmp_path_factory.mktemp("orders") / "orders.json"
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tiny_model_dir, orders, tmp_path_factory):
    """The keys of a recipe that has learned some of its examples by heart."""
    place = tmp_path_factory.mktemp("trained")
    keys = {
        "model_name_or_path": str(tiny_model_dir), "dataset": orders, "output_dir": str(place / "run"), "lora_rank": 4,
        "additional_target": "lm_head,embed_tokens", "learning_rate": 1e-2, "max_steps": 40, "cutoff_len": 128,
        "per_device_train_batch_size": 5, "save_strategy": "no",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_CACHE", str(place / "cache"))
        train.train(recipes.load(keys), quiet=True)
    return keys


def test_figures_are_those_of_the_answers(trained, orders, capsys):
    made = recipes.load(trained | {"eval_figures": ",".join(ALL)})
    found = evaluation.score(made)
    for name, row in found.items():
        told = row["intervals"]
        assert row["rows"] == 5 and told["loss"]["n"] == 5 and told["json_valid"]["n"] == 4, name
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"])) and set(told) == set(row) - {
            "rows", "intervals", "paired"
        }  # fmt: skip
        assert all(one["low"] <= row[figure] <= one["high"] for figure, one in told.items() if figure != "bleu-4")
    assert found["tuned"]["exact_match"] > 0 == found["base"]["exact_match"], "or this test shows nothing"
    assert found["tuned"]["token_accuracy"] > found["base"]["token_accuracy"]
    assert found["tuned"]["contains"] >= found["tuned"]["exact_match"]
    assert capsys.readouterr().out.count("examples: 5 read") == 1, "both models answer the same examples"
    gained = round(5 * found["tuned"]["exact_match"])
    assert found["tuned"]["paired"] == {"gained": gained, "lost": 0, "p": min(1, 2 * 0.5**gained)}
    table = evaluation.scores_table(found)
    assert f"{gained} newly right, 0 newly wrong" in table and "rouge-l" in table and "(95% interval)" in table


def test_an_answer_that_stops_early_is_right_where_the_whole_one_is(trained):
    made, lengths = recipes.load(trained), {}
    inner = evaluation.generate_greedy

    def noted(one, asked, checked, wanted, predicting):
        answers = inner(one, asked, checked, wanted, predicting)
        lengths.setdefault(tuple(wanted), []).append(sum(map(len, answers)))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "generate_greedy", noted)
        short = evaluation.score(made, figures=("exact_match",))
        whole = evaluation.score(made, figures=("exact_match", "contains"))
    assert [row["exact_match"] for row in short.values()] == [row["exact_match"] for row in whole.values()]
    # The base, whose answers are all wrong, is left after a token or two.
    assert lengths[("exact_match",)][1] < lengths[("exact_match", "contains")][1] / 4


def test_another_kind_of_model_is_answered_by_generate(trained, monkeypatch):
    made = recipes.load(trained)
    before = evaluation.score(made, figures=("exact_match", "rouge"))
    monkeypatch.setattr(greedy, "plain", lambda model: False)
    assert evaluation.score(made, figures=("exact_match", "rouge")) == before


def test_keys_choose_the_figures(tiny_recipe):
    def chosen(**keys):
        return evaluation.figures_of(recipes.load(tiny_recipe | keys), False)

    assert chosen() == ("loss", "exact_match")
    assert chosen(compute_accuracy=True) == ("loss", "exact_match", "accuracy")
    assert chosen(predict_with_generate=True) == ("loss", "exact_match", "bleu", "rouge")
    assert chosen(eval_figures="bleu, json", compute_accuracy=True) == ("bleu", "json")
    assert evaluation.figures_of(recipes.load(tiny_recipe), True) == ("multiple_choice",)


LLAMA_FACTORY = """\
### examples/extras/nlg_eval/llama3_lora_predict.yaml
model_name_or_path: {model}
adapter_name_or_path: {adapter}
stage: sft
do_predict: true
finetuning_type: lora
eval_dataset: {orders}
cutoff_len: 2048
max_samples: 50
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: {out}
overwrite_output_dir: true
per_device_eval_batch_size: 1
predict_with_generate: true
ddp_timeout: 180000000
"""


def test_a_llama_factory_recipe_predicts(trained, orders, tmp_path, capsys):
    recipe, out = tmp_path / "predict.yaml", tmp_path / "saves" / "predict"
    names = {"model": trained["model_name_or_path"], "adapter": trained["output_dir"], "orders": orders, "out": out}
    recipe.write_text(LLAMA_FACTORY.format(**names))
    assert cli.main(["eval", str(recipe)]) == 0
    assert "bleu-4" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / folder.PREDICTIONS).read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "predict", "label"}] * 5
    assert rows[0]["label"] == "Nothing." and rows[1]["label"] == '{"n": 1, "name": null}'
    assert rows[0]["prompt"] == "<|im_start|>user\nOrder 0<|im_end|>\n<|im_start|>assistant\n"
    results = json.loads((out / folder.PREDICT_RESULTS).read_text())
    scores = json.loads((out / folder.SCORES).read_text())["tuned"]
    assert results["predict_samples"] == 5 and results["predict_runtime"] > 0
    for figure in ("bleu-4", "rouge-1", "rouge-2", "rouge-l", "exact_match", "loss"):
        assert results[f"predict_{figure}"] == scores[figure]
    answers, labels = [row["predict"] for row in rows], [row["label"] for row in rows]
    assert scores["bleu-4"] == pytest.approx(figures.bleu(answers, labels).value)
    assert scores["exact_match"] == evaluate.exact_match(answers, labels)
    assert cli.main(["train", str(recipe)]) == 2 and "ftlab eval" in capsys.readouterr().err


def test_predictions_of_short_answers_leave_bleu_out(trained, tmp_path, capsys):
    (tmp_path / "short.json").write_text(json.dumps([{"instruction": "Which tree?", "output": "Oak."}]))
    recipe = recipes.load(trained | {"predict_with_generate": True, "eval_dataset": str(tmp_path / "short.json")})
    scores = evaluation.score(recipe)
    assert capsys.readouterr().out.count("eval: bleu is left out") == 1
    for one in ("base", "tuned"):
        assert "bleu-4" not in scores[one] and {"rouge-1", "rouge-2", "rouge-l"} < set(scores[one])
    with pytest.raises(LabError, match="compare for bleu"):
        evaluation.score(recipe.model_copy(update={"eval_figures": "bleu"}))


def stopping_after(steps, stop):
    """Return a step of a batch that asks for a stop after some steps."""
    inner, taken = greedy.Batch.step, []

    def step(batch, left):
        inner(batch, left)
        taken.append(1)
        if len(taken) == steps:
            stop()

    return step


@pytest.mark.parametrize("way", ["file", "signal"])
def test_a_stop_keeps_the_answers_that_are_finished(trained, tmp_path, monkeypatch, capsys, way):
    out = tmp_path / "out"
    keys = {"output_dir": str(out), "adapter_name_or_path": trained["output_dir"], "predict_with_generate": True}
    made = recipes.load(trained | keys)
    asked = []
    monkeypatch.setattr(callbacks.Stop, "__init__", noting(callbacks.Stop.__init__, asked))
    stop = (out / folder.STOP).touch if way == "file" else lambda: asked[0].asked.set()
    monkeypatch.setattr(greedy.Batch, "step", stopping_after(1, stop))
    with pytest.raises(LabError, match="stopped before the end") as caught:
        evaluation.score(made)
    assert caught.value.exit_code == 130 and str(out / folder.PREDICTIONS) in str(caught.value)
    rows = [json.loads(line) for line in (out / folder.PREDICTIONS).read_text().splitlines()]
    assert 0 < len(rows) < 5 and f"{len(rows)} of 5" in str(caught.value)
    # What one forward pass shows to be the expected answer is finished before any token is generated.
    assert any(row["predict"] == row["label"] for row in rows)
    assert not (out / folder.SCORES).exists() and not (out / folder.STOP).exists()
    monkeypatch.undo()
    assert evaluation.score(made)["tuned"]["rows"] == 5
    assert len((out / folder.PREDICTIONS).read_text().splitlines()) == 5


def noting(inner, made):
    """Return an __init__ that remembers what it made."""

    def init(self, *given):
        inner(self, *given)
        made.append(self)

    return init


def test_a_stop_without_predictions_writes_nothing(trained, tmp_path):
    (tmp_path / folder.STOP).touch()
    keys = {"output_dir": str(tmp_path), "adapter_name_or_path": trained["output_dir"]}
    with pytest.raises(LabError, match="no scores were written") as caught:
        evaluation.score(recipes.load(trained | keys))
    assert caught.value.exit_code == 130 and {path.name for path in tmp_path.iterdir()} <= {"ftlab-cache"}


def test_a_large_set_is_sampled(tiny_recipe, tmp_path, capsys):
    rows = [{"instruction": f"Question {n}?", "output": f"It is {n}."} for n in range(300)]
    (tmp_path / "many.json").write_text(json.dumps(rows))
    keys = tiny_recipe | {"eval_dataset": str(tmp_path / "many.json"), "output_dir": None}

    def labels(**more):
        made, seen = recipes.load(keys | more), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                evaluation, "answer", lambda one, examples, *_, **__: seen.extend(examples) or empty(examples)
            )
            evaluation.score(made)
        return [str(one["input_ids"]) for one in seen]

    def empty(examples):
        return evaluation.Result({}, len(examples))

    first = labels(max_samples=40)
    assert "40 of 300 examples, a random sample (seed 42)" in capsys.readouterr().out
    assert len(first) == len(set(first)) == 40 and first == labels(max_samples=40)
    assert first != labels(max_samples=40, seed=1) and len(labels()) == evaluation.LIMIT
    everything = labels(max_samples=300)
    # In the order of the file, and from all parts of it.
    places = [everything.index(one) for one in first]
    assert places == sorted(places) and places[0] < 60 and places[-1] > 240


@pytest.fixture
def choices(tmp_path):
    rows = [{"question": f"{n} + 1?", "choices": [str(n + 1), str(n), "none"], "answer": n % 2} for n in range(7)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "choices.jsonl")


def test_questions_with_choices(trained, choices, tiny_model_dir):
    found = evaluation.score(recipes.load(trained | {"eval_dataset": choices, "max_samples": 6}))
    row = found["base"]
    assert row["rows"] == row["intervals"]["multiple_choice"]["n"] == 6 and "paired" in found["tuned"]
    made = recipes.load({"model_name_or_path": str(tiny_model_dir), "eval_dataset": choices})
    from ftlab.runs import chat

    expected = evaluate.multiple_choice(*chat.from_recipe(made), questions.read_all(made))
    assert evaluation.score(made)["base"]["multiple_choice"] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a?", "choices": ["x"], "answer": 0},
        {"question": "a?", "choices": ["x", "y"], "answer": 2},
        {"question": "a?", "choices": ["x", "y"], "answer": True},
        {"question": "a?", "choices": ["x", 3], "answer": 0},
        {"question": "", "choices": ["x", "y"], "answer": 0},
        {"question": "a?", "choices": "xy", "answer": 0},
    ],
)
def test_a_wrong_question_is_named(trained, choices, row):
    with open(choices, "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(LabError, match=r"choices\.jsonl:8") as caught:
        evaluation.score(recipes.load(trained | {"eval_dataset": choices}))
    assert caught.value.exit_code == 2


def refused(capsys, *keys) -> str:
    assert cli.main(["eval", *keys]) == 2
    # In front of it are the bars of the libraries.
    said = capsys.readouterr().err.partition("ftlab: ")[2]
    assert 1 <= len(said.strip().splitlines()) <= 2 and "Traceback" not in said
    return said


def test_bad_input_is_one_line(tiny_recipe, tmp_path, capsys, monkeypatch):
    model, rows = tiny_recipe["model_name_or_path"], tiny_recipe["dataset"]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model_name_or_path: {model}\neval_dataset: {rows}\n")
    assert "there are loss, accuracy" in refused(capsys, str(recipe), "eval_figures=blue")
    for figure in ("json", "tool_calls", "multiple_choice"):
        assert f"compare for {figure}" in refused(capsys, str(recipe), f"eval_figures={figure}")
    short = tmp_path / "short.json"
    short.write_text(json.dumps([{"instruction": "Which tree?", "output": "Oak."}]))
    assert "bleu an answer of four tokens" in refused(capsys, str(recipe), f"eval_dataset={short}", "eval_figures=bleu")
    assert "output_dir" in refused(capsys, str(recipe), "predict_with_generate=true")
    for place in (rows, f"{rows}/below", "/"):
        assert "output_dir" in refused(capsys, str(recipe), "predict_with_generate=true", f"output_dir={place}")
    # What is refused leaves no folder behind.
    new = tmp_path / "new" / "out"
    refused(capsys, str(recipe), "predict_with_generate=true", f"output_dir={new}", "adapter_name_or_path=nowhere")
    assert not new.parent.exists()
    (tmp_path / "none.json").write_text("[]")
    refused(capsys, str(recipe), f"eval_dataset={tmp_path / 'none.json'}")
    known = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "sacrebleu" else known(name))
    assert "ftlab[metrics]" in refused(capsys, str(recipe), "eval_figures=bleu")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_is_for_a_terminal(monkeypatch, stream):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    with watch.Watch(None).line("tuned: answering", 100) as advance:
        for _ in range(5):
            advance(20)
    assert ("tuned: answering" in shown.getvalue() and "left" in shown.getvalue()) is (stream is Terminal)


def test_unfinished_answers_are_left_out(tmp_path, tiny_tokenizer):
    ids = [tiny_tokenizer(text).input_ids for text in ("ask", "yes", "no")]
    pairs = [(ids[0], ids[1]), (ids[0], ids[2])]
    assert predictions.write(tmp_path, tiny_tokenizer, pairs, [None, ids[1]]) == 1
    line = (tmp_path / folder.PREDICTIONS).read_text()
    assert json.loads(line) == {"prompt": "ask", "predict": "yes", "label": "no"}


def test_long_figures_stay_apart():
    scores = {"perplexity": 47264.677, "intervals": {"perplexity": {"n": 8, "low": 46818.84, "high": 47766.138}}}
    line = evaluation.scores_table({"base": scores, "tuned": scores}).splitlines()[1]
    assert line.split() == ["perplexity", "8", *["47264.677", "(46818.840-47766.138)"] * 2]
