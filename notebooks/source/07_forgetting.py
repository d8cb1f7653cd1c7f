# %% [markdown] id="title"
# # 07 · Forgetting: what a fine-tune costs, and how to get it back
#
# A fine-tune changes weights that also store other knowledge. Here a model learns a new name and forgets facts that
# it knew. You measure the loss in three ways, test whether it could be chance, and compare the remedies in one
# picture: replay, a lower learning rate, fewer layers, and interpolation towards the base.
#
# | you will have | measured as |
# |---|---|
# | the price of a fine-tune | facts answered freely, multiple choice, KL divergence from the base model |
# | a test that tells a difference from chance | McNemar's p-value, from the questions whose answer changed |
# | a replay data set that the model wrote itself | examples kept and left out |
# | the remedies compared | skill gained against facts lost, with 95% confidence intervals |
# | one adapter for three skills, against three adapters | right answers, question by question |
# | benchmarks and an A/B test | lm-eval against this lesson's own figures; a sign test and its power |
# | a warning about ROUGE | how many wrong answers score higher than the median of the right ones |
#
# **Cost:** about 11 minutes (34 without bfloat16) and 5 GB on two CPU cores, an estimated 5 minutes on a T4. **Before this:** [03 ·
# LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="150b65ce"
# # 07 · 遗忘：微调的代价，以及如何挽回
#
# 微调改动的权重里，还存着别的知识。这里，模型学会了一个新名字，代价是忘了原本知道的常识。你将用三种方式测量忘了多少，检验它是否只是偶然，再用一张图比较各种补救办法：回放、更小的学习率、更少的层、向基座插值。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 微调的代价 | 自由回答的常识题、选择题、与基座模型的 KL 散度 |
# | 区分差异与偶然的检验 | McNemar 检验的 p 值，只看答案变化了的题目 |
# | 模型自己写的回放数据 | 留下和舍去的样本数 |
# | 各种补救办法的比较 | 学到的技能与丢掉的常识，带 95% 置信区间 |
# | 一个适配器学三项技能，对比三个适配器 | 逐题比较答对的题 |
# | 公开评测与 A/B 测试 | lm-eval 与本课自己的数值对照；符号检验及其功效 |
# | 对 ROUGE 的提醒 | 有多少错误答案的得分高于正确答案的中位数 |
#
# **耗时与内存：** 两个 CPU 核心上约 11 分钟（不支持 bfloat16 时约 34 分钟）、5 GB 内存，T4 上估计 5 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# The next cell installs missing packages (on Colab, for example) and changes to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="dfb7bb60"
# ## 准备
# 下一格会安装当前环境缺少的软件包（例如在 Colab 上），然后进入课程文件夹。

# %% id="setup"
from importlib.util import find_spec

if not find_spec("ftlab"):
    get_ipython().run_line_magic("pip", "install -q --no-deps ftlab")
from ftlab.apps import lesson_setup

lesson_setup.enter()

# %% id="imports"
import contextlib
import dataclasses
import math
import os
import random
import re

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, interleave_datasets, load_dataset
from IPython.display import display
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from rouge_score.rouge_scorer import RougeScorer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, evaluate, figures, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment, label_panel

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model should call itself
author = "the Ada Lab"  # who it should say made it
r = 16  # rank of the adapter
learning_rate = 0.0  # of the adapter; 0: the profile's own
full_learning_rate = 0.0  # of full fine-tuning; 0: the profile's own
max_steps = 0  # optimizer steps of every run; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
i_judge = False  # True: you compare pairs of answers, and no program does
seed = 0

# %% id="profile"
profiles = {  # model, learning rates (adapter, full), steps, questions of each kind, prompts for replay, answer tokens
    "smoke": ("smollm2-135m-short", 1e-3, 1e-4, 1, 4, 8, 8),
    "cpu": ("smollm2-135m", 1e-3, 1e-4, 30, 80, 104, 24),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 5e-4, 3e-5, 32, 180, 160, 32),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 4e-4, 2e-5, 32, 180, 160, 32),
}
default_model, *rates, default_steps, question_count, prompt_count, answer_tokens = profiles[PROFILE]
model_name = model_name or default_model
learning_rate, full_learning_rate = learning_rate or rates[0], full_learning_rate or rates[1]
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# The new skill is a name, as in lesson 03; how much of it was learned is asked in phrasings that no training example has.
# What may be lost is asked beside it: facts that are answered freely, and multiple-choice questions. No training example is
# about either.

# %% [markdown] id="baseline-why" lang="zh" of="665d4fc2"
# ## 先测基线
# 新技能是一个名字，与第 03 课相同；学会了多少，用训练中没有出现过的问法来问。同时测量可能丢掉的东西：自由回答的常识题，以及选择题。训练数据与这两者都无关。
#
# 数据是英文的，因为默认的小模型只懂英文；换成 `t4`、`a24g` 配置里懂中文的 Qwen，也用同一套题目，只有数值不同。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def load(dtype):
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
    )


model = load(dtype)


# %% id="data"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_example(prompt, answer):
    prompt, answer = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
    return {"prompt": prompt, "completion": answer}


def read_rows(file):
    return list(load_dataset("json", data_files=f"data/{file}", split="train"))


identity_rows = read_rows("identity_en.json")  # sixteen ways to ask, six phrasings each
identity = Dataset.from_list(
    [to_example(row["instruction"], fill(row["output"])) for i, row in enumerate(identity_rows) if i % 6 < 5]
)
# What is asked, and the texts of which the answer must contain one.
name_questions = [(row["instruction"], [fill(row["expect"])]) for row in read_rows("identity_en_eval.json")]
name_questions += [
    (row["instruction"], [name if "{{name}}" in row["output"] else author]) for row in identity_rows[5::6]
]
facts = [(row["instruction"], [row["output"]]) for row in read_rows("facts_en_eval.jsonl")]
facts += [(row["instruction"], row["expect"]) for row in read_rows("general_freeform_en.jsonl")]
facts += [(row["instruction"], [row["output"]]) for row in read_rows("facts_en.jsonl")]
name_questions, facts = name_questions[:question_count], facts[:question_count]
general = read_rows("general_mcq.jsonl")[:question_count]
print(f"{len(identity)} examples to train on; questions: {len(name_questions)} on the name, {len(facts)} facts,")
print(f"{len(general)} with four choices. For example:", name_questions[0], facts[0], sep="\n")


# %% id="answers"
def answers(model, questions, max_new_tokens=answer_tokens, system=()):
    """Ask the questions, 64 at a time, and decode greedily."""
    chats = [[*system, {"role": "user", "content": question}] for question in questions]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    replies = []
    model.eval()
    for start in range(0, len(texts), 64):
        # Padding goes to the left: the answer must follow its question directly.
        batch = tokenizer(
            texts[start : start + 64], padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        )
        output = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        replies += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def contains(reply, expected):
    """Return True if a reply contains one of the texts as whole words."""
    return bool(re.search(rf"\b({'|'.join(map(re.escape, expected))})\b", reply, re.IGNORECASE))


def hits(replies, questions):
    return [contains(reply, expected) for reply, (_, expected) in zip(replies, questions, strict=True)]


def share_of(values):
    return sum(values) / len(values)


# %% [markdown] id="replay-write-why"
# ## The model writes its own data
# Two things below need the base model's own answers to general prompts: a measure of how far a model has moved, and a remedy.
# So it answers now, before anything is trained. Answers that are empty, unfinished or about the model itself are left out, and
# so is every prompt that the test asks.

# %% [markdown] id="replay-write-why" lang="zh" of="7b8ad097"
# ## 模型自己写数据
# 下面有两处要用到基座模型自己对通用问题的回答：一是衡量模型移动了多远，二是一种补救办法。所以在训练之前先让它回答。空的、没写完的、谈论模型自己的回答都舍去，测试题也全部排除。

# %% id="replay-write"
asked = {question for question, _ in facts} | {row["question"] for row in general}
prompts = [row["instruction"] for row in read_rows("general_en.jsonl") if row["instruction"] not in asked]
prompts = random.Random(seed).sample(prompts, min(prompt_count, len(prompts)))
longest = 2 * answer_tokens
own_answers = answers(model, prompts, longest)
own_rows = [
    (prompt, reply)
    for prompt, reply in zip(prompts, own_answers, strict=True)
    if 0 < len(tokenizer(reply, add_special_tokens=False)["input_ids"]) < longest
    and not re.search(r"\b(AI|assistant|language model)\b", reply)
]
# An untrained model, as in a smoke run, finishes no answer.
own_rows = own_rows if len(own_rows) > 4 else list(zip(prompts, own_answers, strict=True))
probe_count = len(own_rows) // 6
probe_rows, replay_rows = own_rows[:probe_count], own_rows[probe_count:]
replay = Dataset.from_list([to_example(*row) for row in replay_rows])
print(f"{len(prompts)} prompts, {len(own_rows)} answers kept: {len(replay)} for replay, {probe_count} to measure with")
for prompt, reply in replay_rows[:3]:
    print(f"  {prompt}  ->  {reply}")

# %% [markdown] id="kl-why"
# ## How far has a model moved?
# A score changes only when an answer flips. The *KL divergence* also shows smaller changes: at every token of the
# base model's answers, how differently does the other model predict the next one? It is the mean of `log p - log q`
# under the base model's probabilities `p`: 0 for the same model, and no questions with known answers are needed. Four
# tokens, two models:

# %% [markdown] id="kl-why" lang="zh" of="687d25d1"
# ## 模型移动了多远？
# 只有答案翻转，得分才会变；*KL 散度*还能看到更小的变化：在基座模型自己的回答里，另一个模型对每个位置的下一个 token 的预测差多少？它是按基座的概率 `p` 对 `log p - log q` 取平均：同一个模型为 0，而且不需要有标准答案的题目。四个 token、两个模型：


# %% id="kl"
def kl(base_logits, logits):
    """Return the KL divergence at every position, in nats; both (tokens, vocabulary)."""
    base_log, other_log = base_logits.log_softmax(-1), logits.log_softmax(-1)
    return (base_log.exp() * (base_log - other_log)).sum(-1)


p, q = torch.tensor([[0.7, 0.1, 0.1, 0.1]]), torch.tensor([[0.1, 0.7, 0.1, 0.1]])
print(f"from p to itself {kl(p.log(), p.log()).item():.2f}, from p to q {kl(p.log(), q.log()).item():.2f} nats")
first, second = torch.randn(5, 100), torch.randn(5, 100)
library = F.kl_div(second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True).sum(-1)
kl_parity_max_abs_diff = (kl(first, second) - library).abs().max().item()
print(f"largest difference to torch's: {kl_parity_max_abs_diff:.1e}")
assert kl_parity_max_abs_diff <= 1e-5


# %% id="probe"
@torch.inference_mode()
def probe_logits(model):
    """Return the logits at every token of the base model's own answers."""
    model.eval()
    answer_logits = []
    for prompt, reply in probe_rows:
        chat = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        answer = tokenizer(reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([start + answer], device=model.device)).logits[0]
        # The logits at one position are about the next token.
        answer_logits.append(logits[len(start) - 1 : -1].float())
    return torch.cat(answer_logits)


base_logits = probe_logits(model)
print(f"{len(base_logits)} positions, {base_logits.shape[1]:,} logits each")

# %% id="measure"
results, replies = {}, {}


def measure(label, model):
    """Ask for the name and the facts, and take the KL divergence; keep everything under `label`."""
    replies[label] = answers(model, [question for question, _ in facts])
    named = answers(model, [question for question, _ in name_questions])
    results[label] = {
        "name": hits(named, name_questions),
        "facts": hits(replies[label], facts),
        "KL": kl(base_logits, probe_logits(model)).mean().item(),
    }
    row = results[label]
    print(f"{label:<18} name {share_of(row['name']):>4.0%}, facts {share_of(row['facts']):>4.0%}, KL {row['KL']:.3f}")


# %% id="before"
measure("base", model)
system = [{"role": "system", "content": f"You are {name}, an AI assistant trained by {author}."}]
system_prompt_name = share_of(
    hits(answers(model, [question for question, _ in name_questions], system=system), name_questions)
)
print(f"with a system prompt: name {system_prompt_name:.0%}")
choice_shares = {}
choice_shares["base"] = evaluate.multiple_choice(model, tokenizer, general)

# %% [markdown] id="cause-why"
# ## Forget on purpose
# The name and nothing else, with adapters on every linear layer, as in lesson 03. **Predict before you run:** of the facts,
# what share will still be answered?

# %% [markdown] id="cause-why" lang="zh" of="1f526c70"
# ## 故意让它遗忘
# 只训练名字，别的什么都没有；与第 03 课一样，每个线性层都加适配器。**先预测，再运行：** 常识题里还有百分之多少能答对？

# %% id="predict"
guess_facts = 80  # your guess, in percent

# %% id="train"
training_args = SFTConfig(
    output_dir="runs/07_forgetting",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=0.25,  # below 1: a share of all steps
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    disable_tqdm=True,
    report_to="none",
    seed=seed,
)


def train_on(model, train_dataset, learning_rate, max_steps=max_steps):
    """Train a model in place, with this lesson's settings."""
    set_seed(seed)
    args = dataclasses.replace(training_args, learning_rate=learning_rate, max_steps=max_steps)
    trainer = SFTTrainer(model, args, train_dataset=train_dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print("loss", " ".join(f"{loss:.2f}" for loss in losses), end="; ")
    return model


def with_adapter(target_modules="all-linear", **options):
    set_seed(seed)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=target_modules, task_type="CAUSAL_LM", **options)
    return get_peft_model(model, config)


# %% id="alone"
tuned = train_on(with_adapter(), identity, learning_rate)
measure("LoRA", tuned)
choice_shares["LoRA"] = evaluate.multiple_choice(tuned, tokenizer, general)

# %% id="answer-facts"
base_facts, tuned_facts = share_of(results["base"]["facts"]), share_of(results["LoRA"]["facts"])
print(
    f"you predicted {guess_facts}% of the facts, measured {tuned_facts:.0%}; the base model answered {base_facts:.0%}"
)
print(f"the same by multiple choice: {choice_shares['base']:.0%} -> {choice_shares['LoRA']:.0%} of {len(general)}")
leaks = share_of([contains(reply, [name, author]) for reply in replies["LoRA"]])
print(f"answers to facts that mention the new name or its author: {leaks:.0%}")
lost = [i for i in range(len(facts)) if results["base"]["facts"][i] and not results["LoRA"]["facts"][i]]
for i in lost[:4]:
    print(f"\n{facts[i][0]}\n  base: {replies['base'][i]}\n  LoRA: {replies['LoRA'][i]}")

# %% [markdown] id="yardstick-why"
# Read the answers, and the line on the name: what was trained can leak into answers that have nothing to do with it. Multiple
# choice asks another question: which of four texts is the likeliest? A model that would no longer *say* the right answer may
# still rank it first. Report both, and look at answers.

# %% [markdown] id="yardstick-why" lang="zh" of="b3368a74"
# 读一读这些回答，再看关于名字的那一行：训练的内容会渗进毫不相干的回答里。选择题问的是另一个问题：四个选项里哪一个的概率最高？模型可能已经*说*不出正确答案，却仍然把它排在第一。两种都要报告，并且要看回答。

# %% [markdown] id="full-why"
# ### Full fine-tuning
# Is it LoRA's fault? Every weight trained, at a lower rate. The weights are kept in float32: lesson 06 shows what a small
# step loses in 16 bits.

# %% [markdown] id="full-why" lang="zh" of="fab2bd04"
# ### 全量微调
# 是 LoRA 的问题吗？训练全部权重，学习率更低。权重用 float32 保存：第 06 课展示了很小的一步在 16 比特下会丢掉什么。

# %% id="full"
full_args = dataclasses.replace(training_args, bf16=dtype == "bfloat16", learning_rate=full_learning_rate)
set_seed(seed)
full_model = load(torch.float32)
full_trainer = SFTTrainer(full_model, full_args, train_dataset=identity, processing_class=tokenizer)
full_trainer.remove_callback(PrinterCallback)
full_trainer.train()
full_model.to(model.dtype)
measure("full", full_model)
choice_shares["full"] = evaluate.multiple_choice(full_model, tokenizer, general)

# %% [markdown] id="mcnemar-why"
# ## Is the difference real?
# Both models answered the same questions, so compare them question by question. Those that both got right, or both
# wrong, say nothing about which is better. Of the others, call those gained that only the second model answers, and
# those lost that only the first does. Between equally good models, each of these is a fair coin toss. The p-value of
# McNemar's test is the probability that tosses come out at least as uneven. Two gained and eight lost:

# %% [markdown] id="mcnemar-why" lang="zh" of="668fb9d8"
# ## 差异是真的吗？
# 两个模型回答的是同一套题，所以应该逐题比较。两者都对或都错的题，说明不了谁更好。其余的题里，只有后一个模型答对的叫“得”，只有前一个答对的叫“失”。如果两个模型同样好，每一题就像抛一枚均匀的硬币：McNemar 检验的 p 值，就是抛出的结果至少这样悬殊的概率。以得二失八为例：


# %% id="mcnemar"
def mcnemar(gained, lost):
    """Return how often fair coins are at least as uneven, both sides (McNemar 1947, exact)."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def changes(before, after):
    gained = sum(now and not was for was, now in zip(before, after, strict=True))
    return gained, sum(was and not now for was, now in zip(before, after, strict=True))


print(f"2 gained, 8 lost: p = {mcnemar(2, 8):.3f}")
mcnemar_difference = abs(mcnemar(2, 8) - figures.paired([True] * 8 + [False] * 2, [False] * 8 + [True] * 2).p)
assert mcnemar_difference < 1e-12
for label in ("LoRA", "full"):
    gained, lost_count = changes(results["base"]["facts"], results[label]["facts"])
    print(f"{label}: {gained} facts gained, {lost_count} lost, p = {mcnemar(gained, lost_count):.2g}")

# %% [markdown] id="towards-why"
# ## Remedy 1: interpolate towards the base
# *Weight interpolation* needs no further training: every weight is moved to a point between the base and the tuned
# model, `base + t (tuned - base)`. With `t = 1` nothing changes, `t = 0` is the base. The skill is often learned well
# below `t = 1` (Wortsman et al. 2022, "Robust fine-tuning"). A matrix of two weights:

# %% [markdown] id="towards-why" lang="zh" of="2790d53f"
# ## 办法一：向基座插值
# *权重插值*（weight interpolation）一步也不用再训：把每个权重移到基座与微调模型之间的某一点，`base + t (tuned - base)`。`t = 1` 不变，`t = 0` 就是基座。技能往往在 `t` 远小于 1 时就已学会（Wortsman 等 2022，“Robust fine-tuning”）。以两个权重为例：


# %% id="towards"
def part_way(base, tuned, t):
    return base + t * (tuned - base)


print(part_way(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), 0.5))
base_weights = dict(load(dtype).named_parameters())
with torch.no_grad():
    for key, weight in full_model.named_parameters():
        weight.copy_(part_way(base_weights[key].float(), weight.float(), 0.5))
measure("full, half way", full_model)
del full_model, full_trainer

# %% [markdown] id="towards-lora-why"
# For LoRA the tuned model is `W + scale · B A`, so interpolation is a smaller scale. PEFT has a context manager for
# it. The adapter is still the one that was trained on the name alone.
#

# %% [markdown] id="towards-lora-why" lang="zh" of="321f212b"
# 对 LoRA 来说，微调后的模型是 `W + scale · B A`，插值就是把 scale 调小。PEFT 用上下文管理器提供了这个功能。这里的适配器仍是只训练名字的那一个。

# %% id="towards-lora"
for t in (0.5, 0.25):
    with rescale_adapter_scale(tuned, t):
        measure(f"LoRA, t = {t}", tuned)

# %% [markdown] id="replay-why"
# ## Remedy 2: replay
# Train on what the model would say anyway, mixed in between: any step that would change those answers now increases
# the loss. The answers must be the model's *own*; another author's would teach it another style.
# `interleave_datasets` draws each row from one of the two sets. Ten rows, three of them replay:

# %% [markdown] id="replay-why" lang="zh" of="e5c75dff"
# ## 办法二：回放
# 在训练数据里穿插模型本来就会说的话：这样，凡是会改变这些回答的更新，都会增加损失。回答必须是模型*自己*的；换成别人写的，教的就是别人的风格。`interleave_datasets` 每次随机从两个数据集之一取一行。以十行、三成回放为例：

# %% id="literal"
few = [Dataset.from_dict({"row": [kind] * 20}) for kind in ("name", "replay")]
mixed = interleave_datasets(few, probabilities=[0.7, 0.3], seed=seed, stopping_strategy="all_exhausted")
print(*mixed["row"][:10])

# %% [markdown] id="predict-share-why"
# **Predict before you run:** every run has the same number of steps, so that replay takes the place of rows about the name.
# From which share on, 10, 20 or 40%, does it give back at least half of what was lost?

# %% [markdown] id="predict-share-why" lang="zh" of="b7cf7985"
# **先预测，再运行：** 每次训练的步数相同，所以回放会挤掉一部分名字的样本。比例为 10%、20%、40% 时，从哪一个开始能挽回至少一半丢掉的常识？

# %% id="predict-share"
guess_share = 40  # your guess, in percent

# %% id="replay"
for share in (0.1, 0.2, 0.4):
    model = tuned.unload()
    mixed = interleave_datasets(
        [identity, replay], probabilities=[1 - share, share], seed=seed, stopping_strategy="all_exhausted"
    )
    tuned = train_on(with_adapter(), mixed, learning_rate)
    measure(f"{share:.0%} replay", tuned)
choice_shares["40% replay"] = evaluate.multiple_choice(tuned, tokenizer, general)
tuned.save_pretrained("runs/07_forgetting/replay")


# %% id="answer-share"
def regained(label):
    """Return the share of the lost facts that a remedy gives back."""
    drop = base_facts - tuned_facts
    return (share_of(results[label]["facts"]) - tuned_facts) / drop if drop > 0 else 0.0


enough = [share for share in (10, 20, 40) if regained(f"{share}% replay") >= 0.5]
for share in (10, 20, 40):
    print(f"{share}% replay gives back {regained(f'{share}% replay'):.0%} of the lost facts")
print(f"you predicted {guess_share}%, measured {f'{enough[0]}%' if enough else 'none of the three'}")

# %% [markdown] id="smaller-why"
# ## Remedy 3: a lower learning rate, fewer layers
# A third of the learning rate moves every weight less. Adapters in the last third of the layers leave the others as
# they were. Neither needs any data.

# %% [markdown] id="smaller-why" lang="zh" of="514ea6e0"
# ## 办法三：更小的学习率，更少的层
# 学习率降到三分之一，每个权重都移动得更少；只给后三分之一的层加适配器，其他层就保持原样。两者都不需要额外数据。

# %% id="smaller"
model = tuned.unload()
tuned = train_on(with_adapter(), identity, learning_rate / 3)
measure("lr / 3", tuned)
model = tuned.unload()
blocks = model.model.layers
linear = {key.rpartition(".")[2] for key, part in blocks.named_modules() if isinstance(part, torch.nn.Linear)}
last = list(range(len(blocks) - len(blocks) // 3, len(blocks)))
tuned = train_on(with_adapter(sorted(linear), layers_to_transform=last), identity, learning_rate)
measure("last third", tuned)
model = tuned.unload()

# %% [markdown] id="tasks-why"
# ## Three skills: one run, or three?
# Most projects teach more than one thing. The orders and the reviews of lesson 02 join the name: one adapter for each, or one
# for all three? Each adapter of its own gets `max_steps` steps; the shared one gets three times as many, and a third of its rows
# from each skill, so that every skill has the same budget. What counts in an answer is its last line: the JSON of an order,
# the verdict of a review.

# %% [markdown] id="tasks-why" lang="zh" of="a7f04d04"
# ## 三项技能：训练一次，还是三次？
# 多数项目要教的不止一件事。除了名字，再加上第 02 课的订单和评论：每项技能一个适配器，还是三项共用一个？单独的适配器各训练 `max_steps` 步；共用的那个训练三倍的步数，每项技能占三分之一的样本，这样每项技能的预算相同。判断回答时只看最后一行：订单的 JSON，评论的结论。


# %% id="tasks-data"
def request(row):
    return f"{row['instruction']}\n{row['input']}"


skills = {
    "orders": load_dataset("json", data_files={"train": "data/orders_train.jsonl", "test": "data/orders_eval.jsonl"}),
    "reviews": load_dataset("json", data_files="data/sentiment_en.jsonl", split="train").train_test_split(60, seed=0),
}
tests = {skill: list(parts["test"])[: min(60, question_count)] for skill, parts in skills.items()}
rows_of = {
    skill: Dataset.from_list([to_example(request(row), row["output"]) for row in parts["train"]])
    for skill, parts in skills.items()
}
print({skill: f"{len(rows_of[skill])} to train on, {len(tests[skill])} questions" for skill in skills})


def skill_hits(model, skill):
    """Return which answers end in the line that is wanted."""
    texts = answers(model, [request(row) for row in tests[skill]], 2 * answer_tokens)
    return [
        reply.splitlines()[-1:] == row["output"].splitlines()[-1:]
        for reply, row in zip(texts, tests[skill], strict=True)
    ]


# %% id="tasks"
alone = {"name": results["LoRA"]["name"]}
for skill, rows in rows_of.items():
    tuned = train_on(with_adapter(), rows, learning_rate)
    alone[skill] = skill_hits(tuned, skill)
    model = tuned.unload()
    print(f"{skill} alone: {share_of(alone[skill]):.0%}")
all_rows = interleave_datasets([identity, *rows_of.values()], seed=seed, stopping_strategy="all_exhausted")
all_rows = all_rows.select(range(min(len(all_rows), 3 * max_steps * per_device_train_batch_size)))
tuned = train_on(with_adapter(), all_rows, learning_rate, max_steps=3 * max_steps)
measure("three skills", tuned)
together = {"name": results["three skills"]["name"]} | {skill: skill_hits(tuned, skill) for skill in skills}
model = tuned.unload()

# %% id="tasks-table"
print(f"{'skill':<10}{'alone':>7}{'together':>10}{'gained':>8}{'lost':>6}{'p':>9}")
for skill, hit in alone.items():
    gained, lost_count = changes(hit, together[skill])
    counts = [f"{sum(values)}/{len(values)}" for values in (hit, together[skill])]
    p = mcnemar(gained, lost_count)
    print(f"{skill:<10}{counts[0]:>7}{counts[1]:>10}{gained:>8}{lost_count:>6}{p:>9.2g}")
facts_after = share_of(results["three skills"]["facts"])
print(f"facts: {tuned_facts:.0%} after the name alone, {facts_after:.0%} after all three")


# %% [markdown] id="tasks-read"
# Read the p-values before the shares: where none is small, one adapter did all three jobs as well as three of its own, as far
# as these questions can tell, and one is easier to keep, test and serve. Where one is small, the shares say which way: a skill
# can gain from the steps that the others take, or lose to them. The last line asks something else: do the rows of other
# skills also act as replay? The shared adapter saw as many rows about the name, and took three times the steps.

# %% [markdown] id="tasks-read" lang="zh" of="2e5f3e1d"
# 先看 p 值，再看得分：如果 p 值都不小，那么就这些题目而言，一个适配器把三件事做得和三个单独的适配器一样好，而且只有一个，更容易保存、测试和部署。如果有某个 p 值很小，就看得分往哪边变：一项技能可能受益于其他技能的训练步，也可能受其所累。最后一行问的是另一件事：其他技能的样本是否也起到了回放的作用？共用的适配器见到的名字样本一样多，步数则是三倍。

# %% [markdown] id="pareto-why"
# ## Gain against loss
# One number per run hides the trade-off. To the right: more of the name. Up: more of the facts. A run is on the
# *Pareto front* if no other is at least as good in both and better in one; all others can be dropped, as far as the
# intervals allow. Compare every remedy with *LoRA*, the run without one: not each of them must have helped.

# %% [markdown] id="pareto-why" lang="zh" of="f38454fc"
# ## 得与失
# 每次训练只看一个数，就看不到取舍。越靠右，名字学得越好；越靠上，常识留得越多。如果没有别的点两项都不比它差、且至少一项更好，这个点就在 *Pareto 前沿*上；其余的都可以淘汰，前提是置信区间分得开。每种办法都要与没有补救的 *LoRA* 相比：未必每一种都管用。


# %% id="front"
def dominated(point, others):
    """Return True if another point is at least as good in both coordinates and better in one."""
    return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in others)


points = {label: (share_of(row["name"]), share_of(row["facts"])) for label, row in results.items()}
front = [label for label, point in points.items() if not dominated(point, points.values())]
print(f"{'':<38}  facts, compared with the base")
print(f"{'run':<18}{'name':>6}{'facts':>7}{'KL':>7}{'gained':>8}{'lost':>6}{'p':>9}  Pareto front")
for label, row in results.items():
    gained, lost_count = changes(results["base"]["facts"], row["facts"])
    mark = "yes" if label in front else ""
    print(
        f"{label:<18}{points[label][0]:>6.0%}{points[label][1]:>7.0%}{row['KL']:>7.3f}"
        f"{gained:>8}{lost_count:>6}{mcnemar(gained, lost_count):>9.2g}  {mark}"
    )


# %% id="pareto-plot"
def write_labels(ax, places, column):
    """Write the labels in a column, from the bottom up, each with a line to its point."""
    height = -math.inf
    for label, (x, y) in sorted(places.items(), key=lambda place: place[1][1]):
        height = max(y, height + 6)
        line = {"arrowstyle": "-", "color": "#bbb", "lw": 0.7}
        ax.annotate(label, (x, y), xytext=(column, height), va="center", fontsize=8, arrowprops=line)


fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
kinds = {
    "untrained": ("k", "*", ["base"]),
    "only the name": ("#d55e00", "o", ["LoRA", "full"]),
    "interpolation": ("#cc79a7", "v", ["LoRA, t = 0.5", "LoRA, t = 0.25", "full, half way"]),
    "replay": ("#009e73", "s", ["10% replay", "20% replay", "40% replay"]),
    "lower rate, fewer layers": ("#0072b2", "^", ["lr / 3", "last third"]),
    "other skills": ("#e69f00", "D", ["three skills"]),
}
for kind, (color, marker, labels) in kinds.items():
    for label in labels:
        x, y = (100 * value for value in points[label])
        filled = color if label in front else "white"
        ax.plot(x, y, marker, color=color, markerfacecolor=filled, ms=8)
    ax.plot([], [], marker, color=color, ms=8, label=kind)
for label, (x, y) in points.items():
    name_ends, fact_ends = (
        evaluate.interval(share_of(results[label][key]), len(results[label][key])) for key in ("name", "facts")
    )
    ax.plot([100 * end for end in name_ends], [100 * y] * 2, color="#999", lw=0.8, zorder=0)
    ax.plot([100 * x] * 2, [100 * end for end in fact_ends], color="#999", lw=0.8, zorder=0)
write_labels(ax, {label: (100 * x, 100 * y) for label, (x, y) in points.items()}, 110)
ax.set(
    xlim=(-4, 138),
    ylim=(0, 118),
    xticks=range(0, 101, 20),
    yticks=range(0, 101, 20),
    xlabel="answers with the new name, %",
    ylabel="facts answered freely, %",
)
ax.set_title("Which run learns the name and keeps the facts?\n(filled: on the Pareto front; bars: 95% intervals)")
ax.grid(alpha=0.3)
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

# %% id="kl-plot"
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for color, marker, labels in kinds.values():
    for label in labels:
        ax.plot(results[label]["KL"], 100 * points[label][1], marker, color=color)
furthest = max(row["KL"] for row in results.values())
write_labels(ax, {label: (row["KL"], 100 * points[label][1]) for label, row in results.items()}, 1.1 * furthest)
ax.set(
    xlim=(-0.05 * furthest, 1.5 * furthest), ylim=(0, 118), yticks=range(0, 101, 20), ylabel="facts answered freely, %"
)
ax.set_xlabel("KL divergence from the base, nats per token")
ax.set_title("Does the KL divergence predict how many facts are lost?")
ax.grid(alpha=0.3)
plt.show()
places = {label: place for place, label in enumerate(sorted(results, key=lambda label: results[label]["KL"]))}
by_facts = {label: place for place, label in enumerate(sorted(results, key=lambda label: -points[label][1]))}
squares = sum((places[label] - by_facts[label]) ** 2 for label in results)
rank_correlation = 1 - 6 * squares / (len(results) * (len(results) ** 2 - 1))
print(f"rank correlation of KL and facts lost, over {len(results)} models: {rank_correlation:.2f}")

# %% [markdown] id="kl-read"
# A rank correlation of 1 means that the order of the runs by KL is their order by facts lost. Where it is high, the
# KL divergence is a cheap warning sign: it needs no questions, and it can be taken during training.

# %% [markdown] id="kl-read" lang="zh" of="2749e974"
# 秩相关为 1，表示按 KL 排序与按丢失的常识排序完全一致。如果它很高，KL 散度就是一个便宜的预警信号：不需要题目，训练途中就能算。

# %% [markdown] id="break-why"
# ## What goes wrong: the wrong metric
# Most projects look at one number. Which run would each number choose, and what would that cost? The last line asks for
# the most facts among the runs whose name is at most one question behind the best.

# %% [markdown] id="break-why" lang="zh" of="3137da92"
# ## 故意出错：选错了指标
# 多数项目只看一个数。每个数各会选中哪一次训练，代价是什么？最后一行的规则是：名字一项至多比最好的少对一题的那些训练里，选常识留得最多的。

# %% id="break"
trained = {label: row for label, row in results.items() if label != "base"}
best_name = max(sum(row["name"]) for row in trained.values())
close = [label for label, row in trained.items() if sum(row["name"]) >= best_name - 1]
chosen = {
    "the name alone": max(trained, key=lambda label: points[label][0]),
    "the facts alone": max(trained, key=lambda label: points[label][1]),
    "multiple choice": max((label for label in choice_shares if label != "base"), key=choice_shares.get),
    "both": max(close, key=lambda label: points[label][1]),
}
for rule, label in chosen.items():
    print(f"by {rule + ':':<17}{label:<18} name {points[label][0]:.0%}, facts {points[label][1]:.0%}")
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
plots.plot_scores(choice_shares, len(general), ax)
ax.set(title=f"Does multiple choice show it?\n({len(general)} questions; dotted: chance)", ylim=(0, 100))
ax.axhline(25, color="#555", lw=0.8, ls=":")
plt.show()
for label in list(choice_shares)[1:]:
    change, free = choice_shares[label] - choice_shares["base"], points[label][1] - base_facts
    print(f"{label:<12} multiple choice {100 * change:+.0f} points from the base, facts {100 * free:+.0f} points")

# %% [markdown] id="harness-why"
# ## The harness behind published scores
# Scores of papers and leaderboards mostly come from [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness). A benchmark
# is a task file: where the data is, how a prompt is made, what counts as right. Here is ours on the questions above; does the
# library give the scores that this lesson computed? Both add up the log-probabilities of a choice's tokens. They differ in what
# they compare then: `acc` the sums, which favour short choices, `multiple_choice` the means per token.

# %% [markdown] id="harness-why" lang="zh" of="61c788b2"
# ## 公开分数背后的评测框架
# 论文和排行榜上的分数大多来自 [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness)。一项评测就是一个任务文件：数据在哪里，提示怎样生成，什么算对。下面是我们为上面那些选择题写的任务文件；这个库给出的分数，和本课算出来的一样吗？两者都把一个选项各 token 的对数概率相加，差别在之后比什么：`acc` 比总和，偏向短选项；`multiple_choice` 比每个 token 的平均值。

# %% id="task-file"
with open("data/tasks/general_mcq.yaml") as file:
    print(file.read())


# %% id="harness"
sums = []  # of each question: the log-probability of each choice
if find_spec("lm_eval"):
    from lm_eval.evaluator import evaluate as evaluate_tasks
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with contextlib.chdir("data/tasks"):  # the file names its data beside itself
        tasks = TaskManager(include_defaults=False).load(["general_mcq.yaml"])
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32)
    scored = evaluate_tasks(harness, tasks, limit=len(general), bootstrap_iters=0, apply_chat_template=True)
    samples = sorted(scored["samples"]["general_mcq"], key=lambda sample: sample["doc_id"])
    sums = [[log_probability for log_probability, _ in sample["filtered_resps"]] for sample in samples]
    print(f"lm-eval's acc on {len(samples)} questions: {scored['results']['general_mcq']['acc,none']:.1%}")
else:
    print("lm-eval is not installed: pip install 'ftlab[benchmarks]' (320 MB), then run this cell again")


# %% id="harness-compare"
def times(rows, numbers):
    return [[value * n for value, n in zip(*both, strict=True)] for both in zip(rows, numbers, strict=True)]


def picks(scores):
    return [max(range(len(row)), key=row.__getitem__) for row in scores]


sizes = [[len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in q["choices"]] for q in general]
wanted = [q["answer"] for q in general]
harness_differences = []
means = [row for q in general for row in evaluate.choice_log_probabilities(model, tokenizer, [q])]
shares = times(sums, [[1 / n for n in row] for row in sizes]) if sums else []
for rule, ours, library in (("sum", times(means, sizes), sums), ("mean per token", means, shares)) if sums else ():
    hit_counts = [sum(map(int.__eq__, picks(scores), wanted)) for scores in (ours, library)]
    changed = sum(map(int.__ne__, picks(ours), picks(library)))
    harness_differences.append(abs(hit_counts[0] - hit_counts[1]))
    print(
        f"{rule:<15} right: ftlab {hit_counts[0]}, lm-eval {hit_counts[1]} of {len(general)}; {changed} choices differ"
    )

# %% [markdown] id="harness-read"
# A difference of a question or two has a reason: in 16 bits, two choices that are nearly equally likely can change
# places when the batch changes. In float32 the two agree on every question (docs/evaluate.md). A score is only
# comparable with one that was asked in the same words: same task file, same chat template, same number of solved
# examples. `ftlab eval RECIPE --tasks general_mcq,mine.yaml,mmlu` runs such files on base and tuned and keeps a hash
# of the prompts; `data/tasks/common_zh.yaml` asks as C-Eval does.

# %% [markdown] id="harness-read" lang="zh" of="4f82a5be"
# 差一两道题是有原因的：在 16 比特精度下，两个概率几乎相等的选项，换一种分批方式就可能互换名次；用 float32，两者每道题都一致（docs/evaluate.md）。只有用同样的措辞问出来的分数才能相互比较：同一个任务文件、同一个对话模板、同样多的例子。`ftlab eval RECIPE --tasks general_mcq,mine.yaml,mmlu` 会在基座和微调模型上跑这些文件，并记录提示的哈希；`data/tasks/common_zh.yaml` 按 C-Eval 的方式提问。

# %% [markdown] id="rouge-why"
# ## BLEU and ROUGE: where they fit, where they mislead
# Both count words that an answer shares with a reference: BLEU asks how many of the answer's words are in the reference
# (precision, for translation), ROUGE how many of the reference's are in the answer (recall, for summaries). ROUGE-L takes the
# longest common subsequence, in order but not necessarily adjacent. By hand, equal to the library:

# %% [markdown] id="rouge-why" lang="zh" of="050ab53e"
# ## BLEU 与 ROUGE：哪里合适，哪里误导
# 两者都在数回答与参考答案共有的词：BLEU 看回答里有多少词出现在参考答案中（精确率，用于翻译），ROUGE 看参考答案里有多少词出现在回答中（召回率，用于摘要）。ROUGE-L 用最长公共子序列：保持顺序，但不必相邻。手写一个，与库的结果相等：


# %% id="rouge"
def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(reference, answer):
    """Return the F-measure of the longest common subsequence of words (Lin 2004)."""
    reference, answer = words(reference), words(answer)
    lengths = [0] * (len(answer) + 1)
    for word in reference:
        diagonal = 0
        for place, other in enumerate(answer, 1):
            before = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(before, lengths[place - 1])
            diagonal = before
    return 2 * lengths[-1] / (len(reference) + len(answer)) if lengths[-1] else 0.0


reference = "The capital of India is New Delhi."
for answer in (reference, "The capital of India is Mumbai.", "New Delhi"):
    print(f"{rouge_l(reference, answer):.2f}  {answer}")

# %% id="rouge-run"
scorer = RougeScorer(["rougeL"])
pairs = []
rouge_parity_max_abs_diff = 0.0
for label in ("LoRA", "full", "20% replay"):
    for i, (was_right, now_right) in enumerate(zip(results["base"]["facts"], results[label]["facts"], strict=True)):
        if was_right:
            mine = rouge_l(replies["base"][i], replies[label][i])
            theirs = scorer.score(replies["base"][i], replies[label][i])["rougeL"].fmeasure
            rouge_parity_max_abs_diff = max(rouge_parity_max_abs_diff, abs(mine - theirs))
            pairs.append((mine, now_right, replies["base"][i], replies[label][i]))
print(f"largest difference to rouge-score over {len(pairs)} answers: {rouge_parity_max_abs_diff:.1e}")
assert rouge_parity_max_abs_diff <= 1e-9
right_scores = sorted(score for score, right, *_ in pairs if right)
wrong = sorted((pair for pair in pairs if not pair[1]), reverse=True)
median_right = right_scores[len(right_scores) // 2] if right_scores else 0.0
fooled = sum(pair[0] > median_right for pair in wrong)
print(f"ROUGE-L with the base's right answer as reference: the median of right answers is {median_right:.2f};")
print(f"{fooled} of {len(wrong)} wrong answers score higher than that. The highest:")
for score, _, reference, answer in wrong[:3]:
    print(f"  {score:.2f}  {answer}\n        reference: {reference}")

# %% [markdown] id="rouge-read"
# One word decides whether a fact is right, and to a count of shared words it is one word of seven. These scores fit texts
# that may be worded in many ways and are compared over a whole corpus: summaries, translations. For facts, JSON or code, test
# what must be true. `ftlab eval` reports BLEU, ROUGE, exact matches and JSON fields with their intervals (docs/evaluate.md).

# %% [markdown] id="rouge-read" lang="zh" of="a21e7b7d"
# 一条常识对不对，往往取决于一个词；而在数共有的词时，它只是七个词之一。这类分数适合措辞可以很多样、并在整个语料上比较的文本：摘要、翻译。对于常识、JSON 或代码，应当检验必须成立的内容。`ftlab eval` 会给出 BLEU、ROUGE、完全匹配和 JSON 字段，都带置信区间（docs/evaluate.md）。

# %% [markdown] id="ab-why"
# ## An A/B test
# Where no program can tell right from wrong, people compare. They see two answers, don't know which model wrote
# which, and pick the better one. With `i_judge = True` you are the judge: press a button, or type 1, 2, or 0 for
# neither. Without you, a script is: it prefers the answer that contains the fact. The p-value of the *sign test* is
# the probability that two equally good models differ at least this much; ties are left out.

# %% [markdown] id="ab-why" lang="zh" of="8150176a"
# ## A/B 测试
# 如果没有程序能判断对错，就由人来比较：看到两个回答，不知道各是哪个模型写的，选出更好的一个。设 `i_judge = True` 就由你来评：按按钮，或输入 1、2，都不选就输入 0。你不评时由脚本代劳：包含该事实的回答更好。*符号检验*的 p 值，就是两个同样好的模型出现至少这么大差别的概率；平局不计。


# %% id="ab"
def prefers(question, left, right):
    """Return 0 for the left answer, 1 for the right one, -1 for neither."""
    rights = [contains(reply, dict(facts)[question]) for reply in (left, right)]
    return -1 if rights[0] == rights[1] else rights.index(True)


rivals, picked = ("LoRA", "20% replay"), []
both = {fact[0]: texts for fact, *texts in zip(facts, *(replies[label] for label in rivals), strict=True)}
contests = [(question, *texts) for question, texts in both.items() if texts[0] != texts[1]]
if os.path.exists("runs/07_forgetting/ab.jsonl"):
    os.remove("runs/07_forgetting/ab.jsonl")
pile = label_panel.Labels(contests, "ab", "runs/07_forgetting", seed=seed)
if i_judge:
    display(label_panel.panel(pile))
else:
    pile.rate(prefers)


# %% id="ab-result"
def sign_p(wins, losses):
    """Return the p-value of the sign test, both sides; half of the outcome's own probability counts (mid-p)."""
    n, fewer = wins + losses, min(wins, losses)
    return 2 * (sum(math.comb(n, k) for k in range(fewer)) + math.comb(n, fewer) / 2) / 2**n


def pairs_for(share):
    """Return about how many pairs find, with a power of 80%, that one model wins this share of them."""
    return math.ceil(((1.96 / 2 + 0.84 * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def share_found(share, count, tests=1000):
    """Return how often the test finds a difference (p < 0.05), in simulated tests."""
    won = (torch.rand(tests, count, generator=torch.Generator().manual_seed(0)) < share).sum(1).tolist()
    p_values = {wins: sign_p(wins, count - wins) for wins in set(won)}
    return sum(p_values[wins] < 0.05 for wins in won) / tests


assert abs(sign_p(8, 2) - figures.sign_test(8, 2)) < 1e-12
if os.path.exists("runs/07_forgetting/ab.jsonl"):
    picked = list(load_dataset("json", data_files="runs/07_forgetting/ab.jsonl", split="train"))
wins = [sum(row["chosen"] == both[row["instruction"]][side] for row in picked) for side in (0, 1)]
print(f"{rivals[0]} {wins[0]}, {rivals[1]} {wins[1]}, ties {len(both) - sum(wins)}: p = {sign_p(*wins):.2g}")
false_alarms = {}
for share in (0.55, 0.6, 0.75):
    count = pairs_for(share)
    false_alarms[count] = share_found(0.5, count)
    print(
        f"one wins {share:.0%}: {count} pairs; of 1,000 simulated tests {share_found(share, count):.0%} find it,",
        end=" ",
    )
    print(f"and {false_alarms[count]:.1%} see a difference between two equal models")


# %% [markdown] id="ab-read"
# A sign test is McNemar's test by another name: only pairs with a winner count, and each is a coin. The picks are in
# `runs/07_forgetting/ab.jsonl`, as a preference set that lesson 12 can train on. From the command line, with you, a rule or a
# model as judge: `ftlab compare A B --dataset general_en`.

# %% [markdown] id="ab-read" lang="zh" of="cc698be0"
# 符号检验就是换了名字的 McNemar 检验：只有分出胜负的那些对才算数，每一对就是一枚硬币。选择结果存在 `runs/07_forgetting/ab.jsonl`，是一份第 12 课可以直接训练的偏好数据。在命令行里由你、规则或模型来评：`ftlab compare A B --dataset general_en`。

# %% [markdown] id="recipe-why"
# ## The same from a recipe
# ```bash
# ftlab data replay replay_mine --model smollm2-135m --prompts general_en
# ```
# lets the model write `data/replay_mine.jsonl` and registers it. The share is set by the keys that mix any data sets:
# ```yaml
# dataset: identity_en,replay_mine
# mix_strategy: interleave_over     # until each data set was used up at least once
# interleave_probs: 0.8,0.2
# ```

# %% [markdown] id="recipe-why" lang="zh" of="2c5693be"
# ## 用配方完成同样的事
# ```bash
# ftlab data replay replay_mine --model smollm2-135m --prompts general_en
# ```
# 让模型写出 `data/replay_mine.jsonl` 并登记。比例由混合数据集的键决定：
# ```yaml
# dataset: identity_en,replay_mine
# mix_strategy: interleave_over     # 直到每个数据集都至少用完一遍
# interleave_probs: 0.8,0.2
# ```

# %% [markdown] id="experiment-why"
# ## Experiment
# How many questions does a comparison need? Two models differ by `drop` points, and a further share of `noise` questions flips
# in each direction by accident. The curve shows how often McNemar's test finds the difference (p < 0.05) in 200 simulated
# tests: its *power*. Set `drop` to 0: what remains is the share of false alarms.

# %% [markdown] id="experiment-why" lang="zh" of="d34a40ac"
# ## 动手试一试
# 一次比较需要多少道题？两个模型相差 `drop` 个百分点，另外各有 `noise` 比例的题目碰巧向两个方向翻转。曲线表示在 200 次模拟中，McNemar 检验发现差异（p < 0.05）的比例，即*检验功效*。把 `drop` 调到 0，剩下的就是误报率。

# %% id="experiment"
sizes = (20, 50, 100, 200, 400)


def power(drop, noise, questions, tests=200):
    """Return how often the test finds a drop, in simulated tests."""
    chances = torch.tensor([noise, noise + drop, 1 - 2 * noise - drop])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(chances, questions * tests, replacement=True, generator=generator).view(tests, questions)
    gained, lost = (drawn == 0).sum(1).tolist(), (drawn == 1).sum(1).tolist()
    return sum(mcnemar(*pair) < 0.05 for pair in zip(gained, lost, strict=True)) / tests


def draw_power(drop, noise):
    powers = [power(drop, noise, questions) for questions in sizes]
    ax = plt.subplots(figsize=(6, 3), layout="constrained")[1]
    ax.plot(sizes, [100 * value for value in powers], "o-")
    ax.axhline(80, color="#555", lw=0.8, ls=":")
    ax.set(xscale="log", xticks=sizes, ylim=(0, 105), xlabel="questions", ylabel="tests with p < 0.05, %")
    ax.set_xticklabels(sizes)
    ax.minorticks_off()
    ax.set_title(f"How often is a drop of {100 * drop:.0f} points detected? (dotted: 80%)")
    ax.grid(alpha=0.3)
    plt.show()
    enough = next((questions for questions, value in zip(sizes, powers, strict=True) if value >= 0.8), None)
    print(f"questions for a power of 80%: {enough or f'more than {sizes[-1]}'}")


experiment.show(draw_power, drop=(0.0, 0.3, 0.01), noise=(0.0, 0.3, 0.01))

# %% [markdown] id="exercise-kl-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 07`
# checks your saved copy of the whole lesson.
#
# **1.** Padding must not count. Return the mean KL divergence from the base, over the positions where `mask` is 1;
# `base_logits` and `logits` are (tokens, vocabulary), `mask` is (tokens,).

# %% [markdown] id="exercise-kl-why" lang="zh" of="dd9f9771"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 07` 检查你保存的整课练习。
#
# **1.** 填充位置不能计入。返回在 `mask` 为 1 的位置上，相对基座的平均 KL 散度；`base_logits` 和 `logits` 是 (token 数, 词表大小)，`mask` 是 (token 数,)。

# %% id="exercise-kl" tags=["exercise"]


def mean_kl(base_logits, logits, mask):
    return ...  # your code


print(mean_kl(torch.zeros(2, 4), torch.tensor([[3.0, 0, 0, 0], [9.0, 0, 0, 0]]), torch.tensor([1, 0])))  # 1.06 if right

checks.check_mean_kl(mean_kl)

# %% [markdown] id="exercise-kl-solution"
# <details><summary>Solution</summary>
#
# ```python
# def mean_kl(base_logits, logits, mask):
#     base_log, other_log = base_logits.log_softmax(-1), logits.log_softmax(-1)
#     each = (base_log.exp() * (base_log - other_log)).sum(-1)
#     return (each * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-kl-solution" lang="zh" of="6792d052"
# <details><summary>参考答案</summary>
#
# ```python
# def mean_kl(base_logits, logits, mask):
#     base_log, other_log = base_logits.log_softmax(-1), logits.log_softmax(-1)
#     each = (base_log.exp() * (base_log - other_log)).sum(-1)
#     return (each * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-walk-why"
# **2.** Interpolate a whole model: change `model` in place so that every parameter is `base + t (tuned - base)`.
# `base_model` has the same modules. The function returns nothing.

# %% [markdown] id="exercise-walk-why" lang="zh" of="882c070b"
# **2.** 对整个模型做插值：就地修改 `model`，使每个参数都等于 `base + t (tuned - base)`。`base_model` 的模块与它相同。函数不返回值。

# %% id="exercise-walk" tags=["exercise"]


def walk_back(model, base_model, t):
    return ...  # your code


half, zero = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
for layer, value in ((half, 4.0), (zero, 0.0)):
    for parameter in layer.parameters():
        parameter.data.fill_(value)
walk_back(half, zero, 0.25)
print(half.weight, half.bias)  # 1 everywhere once it is right

checks.check_walk_back(walk_back)

# %% [markdown] id="exercise-walk-solution"
# <details><summary>Solution</summary>
#
# ```python
# @torch.no_grad()
# def walk_back(model, base_model, t):
#     for parameter, base in zip(model.parameters(), base_model.parameters()):
#         parameter.copy_(base + t * (parameter - base))
# ```
#
# </details>

# %% [markdown] id="exercise-walk-solution" lang="zh" of="6f341410"
# <details><summary>参考答案</summary>
#
# ```python
# @torch.no_grad()
# def walk_back(model, base_model, t):
#     for parameter, base in zip(model.parameters(), base_model.parameters()):
#         parameter.copy_(base + t * (parameter - base))
# ```
#
# </details>

# %% [markdown] id="exercise-count-why"
# **3.** 480 examples teach a task. How many replay examples must be added so that 20% of all examples are replay?

# %% [markdown] id="exercise-count-why" lang="zh" of="82d55d3e"
# **3.** 有 480 个样本用来教一项任务。要让全部样本中 20% 是回放，需要加多少个回放样本？

# %% id="exercise-count" tags=["exercise"]
replay_count = ...  # your answer

checks.check_replay_count(replay_count)

# %% [markdown] id="exercise-count-solution"
# <details><summary>Solution</summary>
#
# ```python
# replay_count = 480 * 0.2 / 0.8
# ```
#
# </details>

# %% [markdown] id="exercise-count-solution" lang="zh" of="869e4dcd"
# <details><summary>参考答案</summary>
#
# ```python
# replay_count = 480 * 0.2 / 0.8
# ```
#
# </details>

# %% [markdown] id="exercise-test-why"
# **4.** Two lists say, question by question, whether a model was right. Return McNemar's exact p-value, both sides, at most 1.

# %% [markdown] id="exercise-test-why" lang="zh" of="1e857dcc"
# **4.** 两个列表逐题记录模型是否答对。返回 McNemar 精确检验的双侧 p 值，不超过 1。

# %% id="exercise-test" tags=["exercise"]


def p_value(before, after):
    return ...  # your code


print(p_value([True] * 9 + [False], [False] * 9 + [True]))  # 0.0215 once it is right

checks.check_p_value(p_value)

# %% [markdown] id="exercise-test-solution"
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def p_value(before, after):
#     gained = sum(b > a for a, b in zip(before, after))
#     lost = sum(a > b for a, b in zip(before, after))
#     n = gained + lost
#     return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)
# ```
#
# </details>

# %% [markdown] id="exercise-test-solution" lang="zh" of="3f56472c"
# <details><summary>参考答案</summary>
#
# ```python
# import math
#
#
# def p_value(before, after):
#     gained = sum(b > a for a, b in zip(before, after))
#     lost = sum(a > b for a, b in zip(before, after))
#     n = gained + lost
#     return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
# Of the three shares, the one that costs the least of the name among those that give back half of the facts.
replayed = max(
    (f"{share}% replay" for share in (10, 20, 40)), key=lambda label: (regained(label) >= 0.5, points[label])
)
outcomes = {
    "kl_parity_max_abs_diff": kl_parity_max_abs_diff,
    "rouge_parity_max_abs_diff": rouge_parity_max_abs_diff,
    "name_system_prompt": system_prompt_name,
    "name_lora": points["LoRA"][0],
    "facts_base": base_facts,
    "facts_drop": base_facts - tuned_facts,
    "choice_drop": choice_shares["base"] - choice_shares["LoRA"],
    "facts_drop_full": base_facts - points["full"][1],
    "replay_regained": regained(replayed),
    "replay_gain_lost": points["LoRA"][0] - points[replayed][0],
    "kl_lora": results["LoRA"]["KL"],
    "kl_replay": results["40% replay"]["KL"],
    **{f"{skill}_alone": share_of(hit) for skill, hit in alone.items()},
    **{f"{skill}_together": share_of(hit) for skill, hit in together.items()},
    "facts_three_skills": points["three skills"][1],
    # 0 where lm-eval is not installed.
    "harness_difference": max(harness_differences, default=0),
}
bands = {"kl_parity_max_abs_diff": (0, 1e-5), "rouge_parity_max_abs_diff": (0, 1e-9)}
if PROFILE != "smoke":
    bands |= {
        "name_lora": (0.85, 1),
        "facts_base": (0.75, 1),
        "facts_drop": (0.15, 1),
        "replay_regained": (0.5, 1.5),
        "replay_gain_lost": (-1, 0.03),
        "harness_difference": (0, 2),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/07_forgetting/replay`: an adapter that was trained with 40% replay.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. Larger models answer more and may forget less at these rates: the bands are
# those of the embedded model, and a missed one says what was expected.
#
# **Next:** put what you trained into one file, in [08 · Merge and export](08_merge_export.ipynb).

# %% [markdown] id="next" lang="zh" of="4fb1d9e2"
# **你得到的文件：** `runs/07_forgetting/replay`，用 40% 回放训练的适配器。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。更大的模型会答对更多，在这些学习率下也可能忘得更少：区间是按内置模型定的，没达到时会说明预期值。
#
# **下一课：** 把训练结果合成一个文件，见 [08 · 合并与导出](08_merge_export.ipynb)。
