"""Rows that join and leave a running batch get the very tokens they would get alone."""

import random
import threading
import time
from collections import Counter
from queue import Queue

import pytest
import serving
import torch
from peft import LoraConfig, get_peft_model
from transformers import Lfm2Config, Lfm2ForCausalLM
from waiting import until

from ftlab.apps.serve import sampling
from ftlab.apps.serve.batch import Batch, PaddedBatch, Row
from ftlab.apps.serve.engine import Busy, Engine
from ftlab.apps.serve.job import Job, Piece
from ftlab.errors import LabError


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return serving.load(tiny_model_dir)


ENDLESS = 20_000
# Seconds after which a test hangs; no answer is expected to take a thousandth of them.
PATIENCE = 300


@pytest.fixture
def engine(loaded):
    made = endless(loaded)
    yield made
    made.close()


def endless(loaded, **options) -> Engine:
    """Return an engine that knows no end token: answers are as long as asked for."""
    engine = Engine(*loaded, **options)
    for batch in engine.batches.values():
        batch.ends = frozenset()
    return engine


def ask(engine: Engine, prompts: list[list[int]], **options) -> list[list[Piece]]:
    """Generate for all prompts at once and return the pieces of each."""
    return [collect(pieces) for pieces in [put(engine, prompt, **options)[1] for prompt in prompts]]


def put(engine: Engine, prompt: list[int], max_tokens: int = 8, **options) -> tuple[Job, Queue]:
    """Queue one job; greedy unless `options` say otherwise."""
    pieces: Queue = Queue()
    job = Job(prompt, pieces.put, max_tokens, **{"temperature": 0.0, "logprobs": 0} | options)
    engine.submit([job])
    return job, pieces


def collect(pieces: Queue) -> list[Piece]:
    """Return the pieces of a job up to its last."""
    got = [pieces.get(timeout=PATIENCE)]
    while not got[-1].finish:
        got.append(pieces.get(timeout=PATIENCE))
    return got


def ids(pieces: list[Piece]) -> list[int]:
    return [piece.likelihood.token for piece in pieces if piece.likelihood]


def test_greedy_tokens_of_100_prompts_are_generate_s_though_rows_join_and_leave(loaded):
    model, tokenizer = loaded
    chance = random.Random(0)
    prompts = [[chance.randrange(200) for _ in range(chance.randint(1, 60))] for _ in range(100)]
    lengths = [chance.randint(1, 24) for _ in prompts]
    engine = Engine(model, tokenizer, max_batch=16, max_queue=100)
    sizes = []
    step = Batch.step

    def counted(self):
        sizes.append(len(self.rows))
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "step", counted)
        queues = [put(engine, p, max_tokens=n)[1] for p, n in zip(prompts, lengths, strict=True)]
        together = [ids(collect(queue)) for queue in queues]
    engine.close()
    for prompt, length, tokens in zip(prompts, lengths, together, strict=True):
        inputs = torch.tensor([prompt])
        alone = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=length, do_sample=False, pad_token_id=0
        )
        assert tokens == alone[0, len(prompt) :].tolist()
    assert max(sizes) == 16 and len(set(sizes)) > 4, "they did not share batches of changing size"


def test_text_arrives_in_whole_characters_and_adds_up(loaded):
    _, tokenizer = loaded
    text = "añ 中文 🙂 end"
    tokens = tokenizer(text).input_ids
    pieces: list[Piece] = []
    row = Row(Job([1], pieces.append, max_tokens=len(tokens)), tokenizer)
    for token in tokens:
        row.take(token, False, None)
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece.text for piece in pieces)
    assert pieces[-1].finish == "length" and pieces[-1].tokens == len(tokens)


def test_bytes_that_make_no_character_are_not_held_back_for_ever(loaded):
    _, tokenizer = loaded
    broken = tokenizer("中").input_ids[:1] * 20
    pieces: list[Piece] = []
    row = Row(Job([1], pieces.append, max_tokens=20), tokenizer)
    for token in broken:
        row.take(token, False, None)
    assert len(pieces) > 1 and set("".join(piece.text for piece in pieces)) == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize(("stop", "left"), [("c", "ab"), ("cde", "ab"), ("zz", "abcdef"), ("efg", "abcdef")])
def test_an_answer_ends_before_a_stop_string(loaded, stop, left):
    _, tokenizer = loaded
    pieces: list[Piece] = []
    row = Row(Job([1], pieces.append, max_tokens=6, stop=[stop]), tokenizer)
    for token in tokenizer("abcdef").input_ids:
        if not row.finish:
            row.take(token, False, None)
    assert "".join(piece.text for piece in pieces) == left
    assert pieces[-1].finish == ("stop" if left == "ab" else "length")


def test_the_end_token_ends_the_answer_and_is_not_shown(loaded):
    _, tokenizer = loaded
    pieces: list[Piece] = []
    row = Row(Job([1], pieces.append, max_tokens=6), tokenizer)
    row.take(tokenizer("a").input_ids[0], False, None)
    row.take(tokenizer.eos_token_id, True, None)
    assert [piece.text for piece in pieces] == ["a", ""] and row.finish == "stop"


def test_a_seed_gives_the_same_tokens_alone_and_in_company(engine):
    sampled = {"temperature": 1.0, "seed": 7, "max_tokens": 12}
    (alone,) = ask(engine, [[5, 6, 7]], **sampled)
    crowd = [put(engine, [i + 1] * (i + 2), temperature=1.0, max_tokens=12)[1] for i in range(9)]
    (again,) = ask(engine, [[5, 6, 7]], **sampled)
    (other,) = ask(engine, [[5, 6, 7]], **sampled | {"seed": 8})
    assert ids(alone) == ids(again) != ids(other)
    assert all(collect(pieces) for pieces in crowd)


def draws(probabilities: list[float], count: int = 300, generated: list[int] | None = None, **parameters) -> Counter:
    """Return how often each token is drawn."""
    random = torch.Generator().manual_seed(0)
    job, scores = Job([0, 1], print, 1, **parameters), torch.tensor(probabilities).log()
    return Counter(sampling.choose(scores, job, generated or [], random) for _ in range(count))


def test_draws_follow_temperature_and_what_cuts_the_tail():
    counts = draws([0.6, 0.3, 0.1], 3000)
    assert [round(counts[i] / 3000, 1) for i in range(3)] == [0.6, 0.3, 0.1]
    assert set(draws([0.6, 0.3, 0.1], top_p=0.8)) == {0, 1}
    assert set(draws([0.6, 0.3, 0.1], top_p=0.0)) == {0}
    assert set(draws([0.6, 0.3, 0.1], top_k=2)) == {0, 1} and set(draws([0.6, 0.3, 0.1], top_k=9)) == {0, 1, 2}
    assert set(draws([0.6, 0.3, 0.1], min_p=0.4)) == {0, 1} and set(draws([0.6, 0.3, 0.1], min_p=1.0)) == {0}


def test_a_token_of_probability_zero_is_never_drawn():
    assert set(draws([0.0, 0.5, 0.0, 0.5, 0.0], 1000)) == {1, 3}


@pytest.mark.parametrize(
    ("parameters", "generated", "best"),
    [
        ({}, [2, 2], 2),
        ({"presence_penalty": 0.5}, [2, 2], 1),
        ({"presence_penalty": 0.1}, [2, 2], 2),
        ({"frequency_penalty": 0.1}, [2], 2),
        ({"frequency_penalty": 0.1}, [2, 2, 2], 1),
        ({"frequency_penalty": -2.0}, [3], 3),
        # The prompt [0, 1] counts for the repetition penalty alone; logits are log probabilities, so below 0.
        ({"repetition_penalty": 1.5}, [2], 3),
        ({"repetition_penalty": 1.5}, [], 2),
        ({"logit_bias": {0: 3.0}}, [2], 0),
        ({"logit_bias": {2: -100.0, 1: -100.0}}, [], 3),
    ],
)
def test_penalties_and_bias_move_the_likeliest_token(parameters, generated, best):
    assert set(draws([0.1, 0.3, 0.35, 0.25], 1, generated, temperature=0.0, **parameters)) == {best}


def test_likelihoods_are_the_model_s(loaded, engine):
    model, _ = loaded
    (pieces,) = ask(engine, [[5, 6, 7]], max_tokens=1, logprobs=3)
    expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    values, tokens = expected.topk(3)
    top = pieces[0].likelihood.top
    assert [token for token, _ in top] == tokens.tolist() and pieces[0].likelihood.token == int(tokens[0])
    assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_cancelled_row_is_dropped_and_the_others_go_on(engine):
    gone, left = put(engine, [1, 2], max_tokens=ENDLESS)
    _, stays = put(engine, [3, 4], max_tokens=60)
    left.get(timeout=PATIENCE)
    gone.cancelled = True
    assert collect(left)[-1].finish == "cancelled"
    assert collect(stays)[-1].tokens == 60
    # The last piece comes a moment before its row is dropped.
    until(lambda: engine.running == 0)


def test_cancelled_and_overdue_jobs_leave_the_queue(loaded):
    engine = endless(loaded, max_batch=1)
    running, pieces = put(engine, [1], max_tokens=ENDLESS)
    pieces.get(timeout=PATIENCE)
    job, cancelled = put(engine, [2])
    _, overdue = put(engine, [3], deadline=time.monotonic())
    job.cancelled = True
    assert cancelled.get(timeout=PATIENCE).finish == "cancelled"
    assert overdue.get(timeout=PATIENCE).finish == "waited"
    running.cancelled = True
    engine.close()


def test_an_answer_ends_where_it_is_when_its_time_is_over(engine):
    (pieces,) = ask(engine, [[1, 2]], max_tokens=ENDLESS, deadline=time.monotonic() + 0.05)
    assert pieces[-1].finish in ("length", "waited") and pieces[-1].tokens < ENDLESS


def test_the_queue_is_bounded_and_jobs_enter_together_or_not_at_all(loaded):
    engine = endless(loaded, max_batch=1, max_queue=2)
    first, pieces = put(engine, [1], max_tokens=ENDLESS)
    pieces.get(timeout=PATIENCE)
    with pytest.raises(Busy):
        engine.submit([Job([1], print, 1) for _ in range(3)])
    assert not engine.waiting
    waiting = [put(engine, [2])[1] for _ in range(2)]
    with pytest.raises(Busy):
        put(engine, [3])
    first.cancelled = True
    assert all(collect(queue)[-1].finish == "length" for queue in waiting)
    engine.close()
    with pytest.raises(Busy):
        put(engine, [1])


def test_the_cache_s_size_bounds_who_is_let_in(loaded):
    engine = endless(loaded, cache_tokens=100)
    assert engine.context == 100
    queues: list[Queue] = [Queue() for _ in range(5)]
    sizes = []

    def emitting(queue: Queue):
        return lambda piece: (sizes.append(engine.running), queue.put(piece))

    engine.submit([Job([1] * 10, emitting(queue), 30, temperature=0.0) for queue in queues])
    assert all(collect(queue)[-1].tokens == 30 for queue in queues) and max(sizes) == 2
    engine.close()


def test_padding_goes_when_the_longest_row_leaves(loaded):
    model, tokenizer = loaded
    batch = PaddedBatch(model, frozenset(), 0)
    long = Row(Job([1] * 50, lambda piece: None, 1, temperature=0.0), tokenizer)
    short = Row(Job([2] * 3, lambda piece: None, 9, temperature=0.0), tokenizer)
    batch.joining = [long, short]
    batch.join()
    assert batch.rows == [short] and batch.cache.get_seq_length() == 3


def test_a_step_that_fails_ends_its_rows_only(engine, monkeypatch, caplog):
    step = Batch.step
    failed = threading.Event()

    def fails_once(self):
        if not failed.is_set():
            failed.set()
            raise RuntimeError("out of memory")
        step(self)

    monkeypatch.setattr(Batch, "step", fails_once)
    (broken,) = ask(engine, [[1, 2]])
    (good,) = ask(engine, [[1, 2]])
    assert broken[-1].finish == "error" and good[-1].finish == "length"
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_numbers_ends_with_an_error(loaded, broken):
    model, tokenizer = loaded
    batch = PaddedBatch(model, frozenset(), 0)
    pieces: list[Piece] = []
    rows = [Row(Job([1], pieces.append, 4, temperature=0.0), tokenizer) for _ in range(2)]
    batch.rows = list(rows)
    batch.take(rows, torch.tensor([[0.0, broken], [0.0, 1.0]]))
    assert rows[0].finish == "error" and batch.rows == [rows[1]]


def test_with_and_without_the_adapter_in_turn(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    base = ids(ask_alone(model, tokenizer, [5, 6, 7]))
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    engine = Engine(tuned, tokenizer)
    queues = [put(engine, [5, 6, 7], adapter=name)[1] for name in ("default", None, "default", None)]
    on, off, on_too, off_too = (ids(collect(queue)) for queue in queues)
    engine.close()
    assert on == on_too != off == off_too == base


def ask_alone(model, tokenizer, prompt):
    engine = Engine(model, tokenizer)
    (pieces,) = ask(engine, [prompt])
    engine.close()
    return pieces


def test_a_model_with_another_state_is_refused(loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(type(model), "_is_stateful", True)
    with pytest.raises(LabError, match="served in batches"):
        Engine(model, tokenizer)


def test_a_model_with_convolutions_between_its_attention_is_refused(loaded):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    config = Lfm2Config(vocab_size=len(loaded[1]), **sizes, **kinds)
    with pytest.raises(LabError, match="served in batches"):
        Engine(Lfm2ForCausalLM(config), loaded[1])


def test_what_waits_is_told_when_the_server_closes(loaded):
    engine = endless(loaded, max_batch=1)
    _, running = put(engine, [1], max_tokens=ENDLESS)
    running.get(timeout=PATIENCE)
    _, waiting = put(engine, [2])
    engine.close()
    assert collect(running)[-1].finish == collect(waiting)[-1].finish == "cancelled"


def test_calls_run_between_steps_and_those_that_wait_are_cancelled_at_the_end(loaded):
    engine, go = endless(loaded), threading.Event()
    first, dropped = engine.call(None, lambda model: go.wait(PATIENCE)), engine.call(None, print)
    left, second = engine.call("default", lambda model: 2), engine.call(None, print)
    assert dropped.cancel() and engine.busy
    closing = threading.Thread(target=engine.close)
    go.set()
    assert first.result(PATIENCE) and left.result(PATIENCE) == 2 and second.result(PATIENCE) is None
    go.clear()
    blocking, waiting = engine.call(None, lambda model: go.wait(PATIENCE)), engine.call(None, print)
    closing.start()
    while not engine.closed:
        time.sleep(0.001)
    go.set()
    closing.join()
    assert blocking.done() and waiting.cancelled()
    with pytest.raises(Busy):
        engine.call(None, print)


def test_a_row_that_has_ended_is_not_ended_again(loaded):
    model, tokenizer = loaded
    pieces = []
    batch = PaddedBatch(model, frozenset(), 0)
    batch.joining = [Row(Job([1, 2], pieces.append, 4, temperature=0.0), tokenizer) for _ in range(2)]
    batch.join()
    batch.rows[0].end("stop")
    Engine.end_rows(batch, "error")
    assert [piece.finish for piece in pieces if piece.finish] == ["stop", "error"] and not batch.rows
