"""Benchmarks through lm-eval: the real library on a tiny model, the course's task files, and one line for a mistake."""

import importlib.util
import json
import shutil
from pathlib import Path

import families
import pytest
import tiny

from ftlab import evaluate, packages
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import evaluation, folder, harness, train

DATA = Path(__file__).parents[2] / "data"
TASKS = DATA / "tasks"
# Of each task.
ROWS = 12
real = pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs pip install 'ftlab[benchmarks]'")


@pytest.fixture
def benchmarked(tiny_recipe):
    """The keys of a recipe that scores two of the course's benchmarks."""
    return tiny_recipe | {"tasks": "general_mcq,facts", "dataset_dir": str(DATA), "max_samples": ROWS}


def test_without_the_package_one_line_says_what_to_install(benchmarked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    recipes.strict_yaml.dump(benchmarked, tmp_path / "r.yaml")
    assert cli.main(["eval", str(tmp_path / "r.yaml"), "--tasks", "general_mcq"]) == 2
    said = capsys.readouterr().err
    assert "the package lm_eval is required" in said and "pip install 'ftlab[benchmarks]'" in said


@pytest.mark.parametrize("tasks", ["", ","])
def test_naming_no_task_is_one_line(benchmarked, tasks):
    with pytest.raises(LabError, match=r"unknown benchmark ``\n.*general_mcq"):
        evaluation.score(recipes.load(benchmarked | {"tasks": tasks}))


def test_metrics_without_a_value_for_each_example_are_named(capsys):
    common = {"filter": "none", "doc_hash": "a", "doc_id": 0}
    cb = common | {"metrics": ["acc", "f1"], "acc": 1.0, "f1": (0, 1)}
    harness.say_left_out("cb", [cb])
    assert capsys.readouterr().out == "cb: f1 omitted: a confidence interval needs a value per example\n"
    assert harness.values_of([cb]) == {"acc": [1.0]}
    wikitext = common | {"metrics": ["word_perplexity"], "word_perplexity": (-9.0, 4)}
    with pytest.raises(LabError, match=r"no metric with a value per example.*word_perplexity"):
        harness.say_left_out("wikitext", [wikitext])


@real
@pytest.mark.parametrize("family", ["llama", "mamba", "rwkv", "qwen3_5_text", "lfm2"])
def test_lm_eval_and_ftlab_find_the_same_answers_right(family):
    model, tokenizer = families.model_of(family), tiny.make_tokenizer()
    found = harness.score_tasks(model, tokenizer, harness.load_tasks(["general_mcq"], TASKS), ROWS, seed=1)
    lines = (DATA / "general_mcq.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = harness.sample(len(lines), ROWS, 1)
    assert len({*drawn}) == ROWS and drawn == sorted(drawn) != list(range(ROWS))
    questions = [json.loads(lines[i]) for i in drawn]
    means = evaluate.choice_log_probabilities(model, tokenizer, questions)
    # `acc` compares sums of log-probabilities, ftlab their means per token, which do not favour short choices.
    counts = [
        [len(tokenizer(choice, add_special_tokens=False).input_ids) for choice in q["choices"]] for q in questions
    ]
    sums = [[mean * n for mean, n in zip(*row, strict=True)] for row in zip(means, counts, strict=True)]
    picked = [max(range(4), key=row.__getitem__) for row in sums]
    assert found.hits == [choice == q["answer"] for choice, q in zip(picked, questions, strict=True)]
    assert found.figures["general_mcq acc"].value == sum(found.hits) / ROWS


@real
@pytest.mark.parametrize(("family", "rows"), [("rwkv", 1), ("mamba", 4)])
def test_answers_are_written_one_by_one_where_a_batch_changes_them(family, rows, monkeypatch):
    model, tokenizer, sizes = families.model_of(family), tiny.make_tokenizer(), []
    generate = model.generate

    def recorded(input_ids, **given):
        sizes.append(len(input_ids))
        return generate(input_ids, **given | {"max_length": input_ids.shape[1] + 2})

    monkeypatch.setattr(model, "generate", recorded)
    harness.score_tasks(model, tokenizer, harness.load_tasks(["facts"], TASKS), 4)
    assert {*sizes} == {rows}


@real
def test_base_and_tuned_are_scored_on_the_same_prompts(benchmarked):
    train.train(recipes.load(benchmarked | {"max_samples": None}))
    found = evaluation.score(recipes.load(benchmarked))
    assert set(found) == {"base", "tuned"} and found["base"]["rows"] == 2 * ROWS
    assert set(found["base"]["intervals"]) == {"general_mcq acc", "general_mcq acc_norm", "facts contains"}
    assert found["tuned"]["prompts"] == found["base"]["prompts"] and set(found["tuned"]["paired"]) == {
        "gained",
        "lost",
        "p",
    }
    assert json.loads((Path(benchmarked["output_dir"]) / folder.SCORES).read_text()) == found
    assert "general_mcq acc_norm" in evaluation.scores_table(found) and "%" in evaluation.scores_table(found)


@real
def test_the_chat_template_is_in_the_prompts_that_are_hashed(benchmarked, tiny_model_dir, tmp_path):
    other = shutil.copytree(tiny_model_dir, tmp_path / "other")
    template = (other / "chat_template.jinja").read_text().replace("<|im_start|>assistant", "<|im_start|>robot")
    (other / "chat_template.jinja").write_text(template)
    hashes = [
        evaluation.score(recipes.load(benchmarked | {"tasks": "common_zh", "model_name_or_path": str(model)}))
        for model in (tiny_model_dir, other)
    ]
    assert hashes[0]["base"]["prompts"].keys() == {"common_zh"}
    assert hashes[0]["base"]["prompts"] != hashes[1]["base"]["prompts"]


@real
def test_a_task_file_finds_its_data_beside_itself(benchmarked, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_text(json.dumps({"q": "2 + 2?", "a": "four"}) + "\n")
    (tmp_path / "mine" / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: [three, four]\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert evaluation.score(recipes.load(benchmarked | {"tasks": "mine/sums.yaml"}))["base"]["rows"] == 1


@real
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("general_mqc", "unknown benchmark `general_mqc`.*did you mean general_mcq"),
        ("mmlu", "mmlu: this benchmark cannot be loaded: .*cais/mmlu.*HF_ENDPOINT"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("broken.yaml", "broken.yaml: this benchmark cannot be loaded"),
    ],
)
def test_a_task_that_cannot_be_scored_is_one_line(benchmarked, tmp_path, monkeypatch, tasks, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("task: [")
    with pytest.raises(LabError, match=f"(?s){message}") as refused:
        evaluation.score(recipes.load(benchmarked | {"tasks": tasks}))
    assert refused.value.exit_code == 2 and len(str(refused.value).splitlines()) <= 2


@real
def test_a_benchmark_can_be_stopped(benchmarked, monkeypatch):
    monkeypatch.setattr(evaluation.Watch, "requested", lambda self: True)
    with pytest.raises(LabError, match="stopped before the end"):
        evaluation.score(recipes.load(benchmarked))
