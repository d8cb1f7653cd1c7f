# %% [markdown] id="title"
# # 02 · Do you need to fine-tune?
#
# Before anything is trained: write the test, try what a prompt can do, and let the numbers decide. Three jobs are tried
# here in four ways each, with their scores, their intervals and their cost. For some a prompt is enough, for others it
# isn't; for one of them, the orders, you will see what fine-tuning adds.
#
# | you will have | measured as |
# |---|---|
# | a test for each job | right answers on held-out examples, with a 95% confidence interval |
# | the best that prompting does | the same score for zero-shot, a system prompt, few-shot |
# | a price for each way | prompt tokens, seconds, money for 1,000 answers |
# | a decision | which job to tune, and what tuning added |
#
# **Cost:** about 10 minutes (44 without bfloat16) and 5 GB on two CPU cores, an estimated 4 minutes on a T4. **Before this:**
# [01 · Data](01_data.ipynb).

# %% [markdown] id="title" lang="zh" of="c7a3cca8"
# # 02 · 真的需要微调吗？
#
# 在训练任何东西之前：先写测试，先看提示词能做到什么，再用数据做决定。这里用四种方式分别完成三项任务，给出得分、置信区间和成本。有的任务写提示词就够，有的不够；对其中的订单任务，你会看到微调带来了什么。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 每项任务的测试 | 留出样本上的正确率，带 95% 置信区间 |
# | 提示词的最好成绩 | 零样本、系统提示、少样本的同一个分数 |
# | 每种方式的价格 | 提示 token 数、秒数、1,000 个回答的费用 |
# | 一个决定 | 哪项任务值得微调，微调带来多少提升 |
#
# **耗时与内存：** 两个 CPU 核心上约 10 分钟（不支持 bfloat16 时约 44 分钟）、5 GB 内存，T4 上估计 4 分钟。**先修：** [01 · 数据](01_data.ipynb)。

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
import copy
import dataclasses
import json
import time

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import catalogue, checks, cpu, device, evaluate, memory, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
second_model = ""  # is compared with it; empty: the profile's own, which on a CPU is the same
shots = 4  # solved examples in a few-shot prompt; the longer prompt has twice as many
target = 0.8  # the share of right answers that the job needs
input_price = 0.5  # dollars for a million prompt tokens: look up your provider's
output_price = 2.0  # dollars for a million generated tokens
yuan_per_dollar = 7.1  # look it up
r = 16  # rank of the adapter
learning_rate = 2e-3
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, a second one, questions per job, tokens of an answer, optimizer steps, texts to synthesize
    "smoke": ("smollm2-135m-short", "smollm2-135m-short", 2, 8, 1, 2),
    "cpu": ("smollm2-135m", "smollm2-135m", 60, 48, 90, 32),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct", 120, 48, 90, 32),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-4B", 120, 48, 60, 32),
}
default_model, default_second, question_count, answer_tokens, default_steps, text_count = profiles[PROFILE]
model_name, second_model = model_name or default_model, second_model or default_second
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("data", ax)
plt.show()

# %% [markdown] id="test-why"
# ## Write the test before the model
# Three jobs, each with held-out examples and a program that says whether an answer is right:
#
# - **orders**: a customer's message becomes JSON; right is the exact JSON. Partial scores: is it JSON at all, and how
#   many of its three fields are right?
# - **reviews**: which verdict, positive or negative? Each review names both a good and a bad point, so that single words
#   don't give it away.
# - **facts**: a short question; right is an answer that contains the fact. These are questions that the embedded model was
#   seen to answer, so its score here says nothing about its knowledge: this is a job that a model already does.

# %% [markdown] id="test-why" lang="zh" of="fdb20335"
# ## 先写测试，再谈模型
# 三项任务，各有留出的样本，以及一个判断对错的程序：
#
# - **订单**：把顾客的话变成 JSON，完全一致才算对。另有部分得分：是不是合法 JSON，三个字段对了几个。
# - **评论**：判断正面还是负面。每条评论都同时提到一个优点和一个缺点，所以单看某个词猜不出来。
# - **常识**：一个简短的问题，回答里包含该事实就算对。这些题是按“内置模型答得上来”挑出来的，所以得分不代表它懂多少常识：这是一项模型本来就会做的任务。

# %% id="data"
orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})
reviews = load_dataset("json", data_files="data/sentiment_en.jsonl", split="train").train_test_split(60, seed=0)
facts = load_dataset("json", data_files=["data/facts_en_eval.jsonl", "data/facts_en.jsonl"], split="train")
facts = facts.train_test_split(120, seed=0)
examples = {"orders": orders["train"], "reviews": reviews["train"], "facts": facts["train"]}
# Answers about facts are short: there is time for twice as many questions.
tests = {
    "orders": list(orders["eval"])[:question_count],
    "reviews": list(reviews["test"])[:question_count],
    "facts": list(facts["test"])[: 2 * question_count],
}
for job, rows in tests.items():
    print(f"{job}: {len(rows)} questions, the first: {rows[0].get('input') or rows[0]['instruction']}")
    print(f"  wanted: {rows[0]['output']}")


# %% id="right"
def verdict(text):
    return text.casefold().rpartition("verdict:")[2].strip(" .\n")


def is_right(job, answer, row):
    if job == "orders":
        return answer.strip() == row["output"]
    if job == "reviews":
        return verdict(answer) == verdict(row["output"])
    return row["output"].casefold() in answer.casefold()


def order_fields(answer, row):
    """Return the share of an order's fields that are right; None if the answer isn't a JSON object."""
    try:
        order = json.loads(answer)
    except json.JSONDecodeError:
        return None
    wanted = json.loads(row["output"])
    return sum(order.get(key) == value for key, value in wanted.items()) / len(wanted) if type(order) is dict else None


print(is_right("reviews", "He likes the screen.\nVerdict: positive", tests["reviews"][0]))
print(order_fields('{"items": [], "name": null, "time": "8:15"}', tests["orders"][0]), order_fields("ok", {}))

# %% [markdown] id="interval-why"
# ### How exact is a score?
# With 30 of 60 right, how good is the model really? The 95% confidence interval contains every true share under which
# the observed one is not improbable (Wilson 1927). Four times as many questions make it half as wide.

# %% [markdown] id="interval-why" lang="zh" of="bf8a70c7"
# ### 得分有多准？
# 60 题对了 30 题，模型的真实水平是多少？95% 置信区间包含所有与观测结果不矛盾的真实正确率（Wilson 1927）。题目增加到四倍，区间宽度减半。


# %% id="interval"
def confidence_interval(share, total, z=1.96):
    """Return the Wilson interval of a share of right answers among `total` independent questions."""
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding leaves -1e-17


for total in (15, 60, 240):
    low, high = confidence_interval(0.5, total)
    print(f"half of {total:>3} right: the true share is {low:.0%} to {high:.0%}")
difference = max(abs(a - b) for a, b in zip(confidence_interval(0.7, 60), evaluate.interval(0.7, 60), strict=True))
assert difference < 1e-9

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# The model as it is, asked plainly. All answers are decoded greedily, so that a second run gives the same score.

# %% [markdown] id="baseline-why" lang="zh" of="5397960c"
# ## 先测基线
# 原样的模型，直接提问。所有回答都用贪心解码，再跑一次得分相同。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
tokenizer = AutoTokenizer.from_pretrained(model_path)


# %% id="conversation"
def question(row):
    return f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]


def conversation(row, solved=(), system=""):
    """Return the messages that ask about a row: a system prompt, solved examples as earlier turns, the question."""
    messages = [{"role": "system", "content": system}] if system else []
    for example in solved:
        messages.append({"role": "user", "content": question(example)})
        messages.append({"role": "assistant", "content": example["output"]})
    return [*messages, {"role": "user", "content": question(row)}]


for message in conversation(tests["facts"][0], solved=list(examples["facts"])[:2]):
    print(message)


# %% [markdown] id="ways-why"
# ## Four ways to ask
# *Zero-shot*: the question alone. *System prompt*: what a careful colleague would write, the format spelt out.
# *Few-shot*: solved examples as earlier turns of the conversation (Brown et al. 2020, section 2). They are taken from
# the training rows, never from the test. (A system prompt replaces the one that the template adds by itself, so it can
# even make a prompt shorter.)

# %% [markdown] id="ways-why" lang="zh" of="1862f635"
# ## 四种提问方式
# *零样本*：只有问题。*系统提示*：像一位细心的同事那样把格式写清楚。*少样本*：把做好的例子放进前面的对话轮次（Brown et al. 2020，第 2 节）。例子取自训练数据，绝不取自测试数据。（自己写的系统提示会替换模板自带的那一段，所以提示甚至可能变短。）

# %% id="ways"
systems = {
    "orders": 'Answer with JSON only: {"items":[[count,size or null,product],...],"name":text or null,"time":text or null}.'
    " Apply corrections. Ignore numbers that are not part of the order.",
    "reviews": "Decide by the point that the writer cares about most. Answer with one sentence of reasoning, then a line"
    ' that reads "Verdict: positive" or "Verdict: negative".',
    "facts": "Answer in a few words. Give the fact and nothing else.",
}
ways = {
    "zero-shot": lambda job: {},
    "system prompt": lambda job: {"system": systems[job]},
    f"{shots}-shot": lambda job: {"solved": list(examples[job])[:shots]},
    f"{2 * shots}-shot": lambda job: {"solved": list(examples[job])[: 2 * shots]},
}

# %% [markdown] id="cache-why"
# ## What a long prompt costs
# Every request reads the solved examples again, unless the keys and values of these tokens are kept (*prefix caching*):
# they are the same for all questions. Read the common beginning once, then only the rest of each question. The
# next-token logits must be those of the whole prompt, up to rounding.

# %% [markdown] id="cache-why" lang="zh" of="8419ec3b"
# ## 长提示的代价
# 每次请求都要重新读一遍那些例子，除非保留这些 token 的键和值（前缀缓存，prefix caching）：对所有问题来说，这一段都一样。公共前缀只计算一次，之后每个问题只计算剩下的部分。下一个 token 的 logits 必须与完整提示的相同，只允许舍入造成的差别。


# %% id="cache"
def to_ids(conversations):
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        for chat in conversations
    ]


def shared_tokens(prompts):
    """Return how many tokens all prompts begin with."""
    return next(place for place, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)


longest = f"{2 * shots}-shot"
asked = to_ids([conversation(row, **ways[longest]("orders")) for row in tests["orders"]])
common = shared_tokens(asked)
question_ids = torch.tensor([asked[0]], device=model.device)
with torch.inference_mode():
    prefix = model(question_ids[:, :common], use_cache=True)
    rest = model(question_ids[:, common:], past_key_values=prefix.past_key_values)
    whole = model(question_ids)
prefix_max_abs_diff = (rest.logits[0, -1] - whole.logits[0, -1]).abs().max().item()
print(f"{common} of {len(asked[0])} prompt tokens are the same for every question")
print(
    f"largest difference of the next-token logits: {prefix_max_abs_diff:.1e}, of {whole.logits[0, -1].abs().max():.0f}"
)
# Numbers in bfloat16 have three digits, and the two ways add in a different order.
assert prefix_max_abs_diff <= (1e-3 if dtype == "float32" else 0.05 * whole.logits.abs().max())


# %% id="answers"
def answers(model, conversations, max_new_tokens=answer_tokens, batch_size=30):
    """Answer greedily, a batch at a time; return the answers and how many tokens all prompts have."""
    prompts = to_ids(conversations)
    common = shared_tokens(prompts)
    shared = torch.tensor([prompts[0][:common]], device=model.device)
    with torch.inference_mode():
        kept = model(shared, use_cache=True).past_key_values
    replies = []
    for start in range(0, len(prompts), batch_size):
        rests = {"input_ids": [ids[common:] for ids in prompts[start : start + batch_size]]}
        # Padding stands before the question: the answer must follow its question directly.
        batch = tokenizer.pad(rests, padding_side="left", return_tensors="pt").to(model.device)
        beginning = shared.expand(len(batch["input_ids"]), -1)
        ids = torch.cat([beginning, batch["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(beginning), batch["attention_mask"]], dim=1)
        cache = copy.deepcopy(kept)
        cache.batch_repeat_interleave(len(ids))
        output = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=False
        )
        replies += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return replies, sum(map(len, prompts))


# %% [markdown] id="predict-why"
# **Predict before you run:** how many of 100 orders will be exactly right with the longer few-shot prompt? Write your
# guess down; you will see it beside the measurement.

# %% [markdown] id="predict-why" lang="zh" of="b45b83fb"
# **先预测，再运行：** 用较长的少样本提示，100 个订单里会有多少个完全正确？写下你的预测，稍后与测量值并排显示。

# %% id="predict"
guess_orders = 50  # your guess, in percent


# %% id="measure"
def measure(model, job, way):
    conversations = [conversation(row, **way) for row in tests[job]]
    started = time.perf_counter()
    replies, prompt_tokens = answers(model, conversations, answer_tokens // 2 if job == "facts" else answer_tokens)
    seconds = time.perf_counter() - started
    right = [is_right(job, reply, row) for reply, row in zip(replies, tests[job], strict=True)]
    generated = sum(len(tokenizer(reply, add_special_tokens=False)["input_ids"]) + 1 for reply in replies)
    count = len(right)
    money = (prompt_tokens * input_price + generated * output_price) / 1e6 / count * 1000
    return {
        "replies": replies,
        "score": sum(right) / count,
        "prompt tokens": prompt_tokens / count,
        "seconds": seconds / count,
        "dollars": money,
    }


results = {(job, name): measure(model, job, way(job)) for job in tests for name, way in ways.items()}

# %% id="table"


def print_table(results):
    print(
        f"{'job':<9}{'asked by':<16}{'right':>5}  {'95% interval':<13}{'prompt tokens':>13}{'s/answer':>9}"
        f"{'1,000 answers':>18}"
    )
    for (job, way), row in results.items():
        low, high = confidence_interval(row["score"], len(tests[job]))
        print(
            f"{job:<9}{way:<16}{row['score']:>5.0%}  {f'{low:.0%} to {high:.0%}':<13}{row['prompt tokens']:>13.0f}"
            f"{row['seconds']:>9.2f}{row['dollars']:>9.3f} $ {yuan_per_dollar * row['dollars']:>5.2f} ¥"
        )


print_table(results)

# %% id="answer-orders"
print(f"you predicted {guess_orders}% of the orders, measured {results['orders', longest]['score']:.0%}")

# %% id="partial"
for way in ways:
    found = [order_fields(*pair) for pair in zip(results["orders", way]["replies"], tests["orders"], strict=True)]
    valid = [share for share in found if share is not None]
    results["orders", way] |= {"valid": len(valid) / len(found), "fields": sum(valid) / len(found)}
    low, high = confidence_interval(len(valid) / len(found), len(found))
    print(f"{way:<14} valid JSON {len(valid) / len(found):>4.0%} ({low:.0%} to {high:.0%}), ", end="")
    print(f"fields right {sum(valid) / len(found):>4.0%}")

# %% id="samples"
for job, rows in tests.items():
    print(f"\n{job}: {question(rows[0])}\n  {'wanted':<15}{rows[0]['output']!r}")
    for way in ways:
        print(f"  {way:<15}{results[job, way]['replies'][0]!r}")

# %% [markdown] id="read-why"
# Compare the two tables. Where the share of valid JSON rises with solved examples while exact answers stay away, the
# examples have taught the *form* and not the *content*. And read the samples before you trust a score: a format that your
# program doesn't recognize counts as wrong, however right it is. Where examples lower a score, they pull the model away from
# what it did well by itself.

# %% [markdown] id="read-why" lang="zh" of="fbdb73cb"
# 对比这两张表。如果加了例子之后合法 JSON 变多，而完全正确的仍然很少，说明例子教会的是*形式*，不是*内容*。相信分数之前先读样本：程序不认识的格式会被判错，哪怕意思是对的。如果加了例子分数反而下降，说明例子干扰了模型本来就做得好的事。

# %% [markdown] id="tune-why"
# ## Fine-tune the job for which no prompt is enough
# The same LoRA as in lesson 03, on the training orders. The tuned model is asked zero-shot: the examples are in its
# weights now.

# %% [markdown] id="tune-why" lang="zh" of="431ae7d9"
# ## 微调一项提示词搞不定的任务
# 与第 03 课相同的 LoRA，用训练集里的订单。微调后的模型用零样本提问：例子已经在权重里了。


# %% id="tune"
def to_prompt_completion(row):
    answer = {"role": "assistant", "content": row["output"]}
    return {"prompt": conversation(row), "completion": [answer]}


train_dataset = orders["train"].map(to_prompt_completion, remove_columns=orders["train"].column_names)
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")
training_args = SFTConfig(
    output_dir="runs/02_do_you_need_it",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # below 1: a share of all steps
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
    max_length=256,  # tokens per example
    logging_steps=10,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
tuned = get_peft_model(model, peft_config)
trainer = SFTTrainer(model=tuned, args=training_args, train_dataset=train_dataset, processing_class=tokenizer)
started = time.perf_counter()
trainer.train()
train_seconds = time.perf_counter() - started
print(f"{train_seconds:.0f} seconds")

# %% id="tuned"
tuned.eval()
for job in tests:
    results[job, "tuned on orders"] = measure(tuned, job, {})
print_table({key: row for key, row in results.items() if key[1] in ("zero-shot", "tuned on orders")})

# %% id="plot"
fig, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
for ax, (job, rows) in zip(axes, tests.items(), strict=True):
    shares = {way: results[job, way]["score"] for way in [*ways, "tuned on orders"]}
    plots.plot_scores(shares, len(rows), ax)
    ax.axhline(100 * target, linestyle="--", color="#555", zorder=0, label="target")
    ax.set_title(f"{job}: does a prompt reach the target?")
    plt.setp(ax.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown] id="decide-why"
# ## Decide
# A score on so few questions is not exact: compare the *interval* with the target, the dashed line. All of it above:
# that way of asking does the job, and the cheapest such way wins; there is nothing to tune. All of it below, for every
# way: no prompt on this list is enough, so tune, or take a larger model. Otherwise the test is too small to tell.
#
# The last bar, *tuned on orders*, is judged in the same way, and by the other two jobs as well: where it is below
# zero-shot, training on orders has cost the model something (*forgetting*: lessons 03 and 07).

# %% [markdown] id="decide-why" lang="zh" of="71ac339b"
# ## 做决定
# 题目这么少，得分并不精确：要用*置信区间*去比目标（图中的虚线）。区间全部高于目标：这种提问方式就够了，选其中最便宜的，不必微调。所有方式的区间都低于目标：这些提示词都不够，那就微调，或者换更大的模型。其余情况：测试题太少，还判断不了。
#
# 最后一根柱子 *tuned on orders* 用同样的规则判断，还要看另外两项任务：它低于零样本的地方，就是在订单上训练付出的代价（*遗忘*，见第 03、07 课）。


# %% id="decide"
def decide(intervals):
    """Return "prompt", "tune" or "ask more", from the intervals of all ways of asking."""
    if any(low >= target for low, _ in intervals):
        return "prompt"
    return "tune" if all(high < target for _, high in intervals) else "ask more"


decisions = {}
for job, rows in tests.items():
    ends = {way: confidence_interval(results[job, way]["score"], len(rows)) for way in ways}
    decisions[job] = decide(ends.values())
    if decisions[job] == "prompt":
        enough = [way for way, (low, _) in ends.items() if low >= target]
        cheapest = min(enough, key=lambda way: results[job, way]["dollars"])
        print(f"{job}: don't tune; the cheapest prompt that does the job: {cheapest}")
    elif decisions[job] == "tune":
        best = max(results[job, way]["score"] for way in ways)
        gap = f"{100 * (target - best):.0f} points short of {target:.0%}"
        print(f"{job}: tune; the best prompt is {gap}, the run tuned on orders is at", end=" ")
        print(f"{results[job, 'tuned on orders']['score']:.0%}")
    else:
        print(f"{job}: an interval includes {target:.0%}; more than {len(rows)} test questions are needed to decide")

# %% [markdown] id="models-why"
# ### Which model?
# The other way out is a larger model. What LoRA training takes follows from a model's sizes alone (lesson 04), so you
# know what this machine can hold before you download anything. Where the parameters name a second model, it is measured
# on your task too, with the longer prompt.

# %% [markdown] id="models-why" lang="zh" of="5af332f4"
# ### 用哪个模型？
# 另一条路是换更大的模型。LoRA 训练需要多少内存，只由模型的尺寸决定（第 04 课），所以下载之前就知道本机装不装得下。参数里若指定了第二个模型，它也会用较长的提示在你的任务上实测。

# %% id="models"
for entry in catalogue.MODELS:
    if entry.name in ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-4b", "qwen2.5-7b"):
        sizes, batch = entry.sizes, (per_device_train_batch_size, 128)
        told = memory.Training(*batch, sizes.lora_parameters(r), adapter_rank=r, trained_bytes=4, checkpointing=True)
        needed, there = memory.estimate(sizes, told).peak, device.describe().memory_bytes
        print(f"{entry.name:<13} LoRA takes {needed / 2**30:>5.1f} GiB, {'fits' if needed < there else 'too big'} here")

# %% id="models-measured"
compared, own = {model_name: results["orders", longest]["score"]}, (model, tokenizer)
second_path = models.fetch(second_model)
if second_path != model_path:
    tokenizer = AutoTokenizer.from_pretrained(second_path)
    model = AutoModelForCausalLM.from_pretrained(second_path, dtype=dtype, device_map="cuda" if on_gpu else "cpu")
    compared[second_model] = measure(model, "orders", ways[longest]("orders"))["score"]
model, tokenizer = own
for candidate, score in compared.items():
    low, high = confidence_interval(score, len(tests["orders"]))
    print(
        f"{candidate}: {score:.0%} of the orders ({low:.0%} to {high:.0%}), {100 * (target - score):.0f} points to go"
    )

# %% [markdown] id="experiment-why"
# ## Experiment
# Fine-tuning costs once, a long prompt costs with every answer. When does it pay? Set the number of examples, the prices
# and what one training costs you; the token counts are those measured above.

# %% [markdown] id="experiment-why" lang="zh" of="1356e118"
# ## 动手试一试
# 微调的成本只付一次，长提示的成本每个回答都要付。什么时候划算？设定例子数、价格，以及一次训练的费用；token 数用的是上面的测量值。

# %% id="experiment"
plain_tokens = results["orders", "zero-shot"]["prompt tokens"]
shot_tokens = (results["orders", longest]["prompt tokens"] - plain_tokens) / (2 * shots)


def draw(examples_in_prompt, price_per_million, training_cost, thousand_answers):
    counts = torch.linspace(0, 1000 * thousand_answers, 50)
    few_shot = counts * (plain_tokens + shot_tokens * examples_in_prompt) * price_per_million / 1e6
    fine_tuned = training_cost + counts * plain_tokens * price_per_million / 1e6
    saved = shot_tokens * examples_in_prompt * price_per_million / 1e6
    _, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
    ax.plot(counts, few_shot, label=f"{examples_in_prompt}-shot prompt")
    ax.plot(counts, fine_tuned, "--", label="fine-tuned, asked zero-shot")
    ax.set(xlabel="answers", ylabel="dollars: prompts, training", title="When does fine-tuning pay for itself?")
    ax.legend()
    ax.grid(alpha=0.3)
    plt.show()
    print(
        f"break-even after {training_cost / saved:,.0f} answers"
        if saved
        else "nothing to save: no examples in the prompt"
    )


experiment.show(
    draw,
    examples_in_prompt=(0, 32, 4),
    price_per_million=(0.1, 5.0, 0.1),
    training_cost=(1, 50, 1),
    thousand_answers=(10, 500, 10),
)

# %% [markdown] id="synthetic-why"
# ## Data from a prompt
# Suppose that the till kept every order and nobody kept the messages. Let the untuned model write them: show it the
# solved examples the other way round, first the order, then the message. The label comes first and the text is
# generated from it (Schick and Schütze 2021; Ye et al. 2022, section 3), so that only the text needs a check. A
# program filters the messages: a usable one is a single line that names every product, person and time of its order.

# %% [markdown] id="synthetic-why" lang="zh" of="160cd45e"
# ## 用提示词造数据
# 假设收银机里留着每一份订单，顾客的原话却没有保存。可以让未微调的模型补写：把做好的例子反过来给它看，先订单、后消息。先有标签，再按标签生成文本（Schick and Schütze 2021；Ye et al. 2022，第 3 节），需要检查的就只有文本。消息由程序筛选：只有一行，并且提到订单里的每个商品、名字和时间，才算可用。


# %% id="synthetic"
def mentions_all(message, order):
    order = json.loads(order)
    named = [product for _, _, product in order["items"]] + [order["name"], order["time"]]
    return "\n" not in message and all(text.casefold() in message.casefold() for text in named if text)


instruction = "Write the message of the customer who ordered this."
swapped = [{"instruction": instruction, "input": row["output"], "output": row["input"]} for row in orders["train"]]
solved, till = swapped[: 2 * shots], swapped[2 * shots : 2 * shots + text_count]
with tuned.disable_adapter():
    messages, _ = answers(tuned, [conversation(row, solved) for row in till])
usable = [
    (text.strip(), row) for text, row in zip(messages, till, strict=True) if mentions_all(text.strip(), row["input"])
]
print(f"{len(messages)} messages written, {len(usable)} usable ({len(usable) / len(messages):.0%})")
for message, row in usable[:4]:
    print(f"{row['input']}\n  the model:    {message}\n  the customer: {row['output']}")

# %% [markdown] id="synthetic-read"
# Read what passed. The program sees that no product, person or time is missing. It checks neither counts and sizes nor
# what the message adds, such as a name that the order doesn't have. A filter bounds how bad synthetic examples are. What
# they are *worth* shows only in training: the same orders with the model's messages and with the customers' own, as many
# steps, each time from the untuned model, and the loss on the real test orders. Both use the same labels, so that the
# comparison cannot tell how much of the decrease is only the format of the JSON, which bad messages teach as well.

# %% [markdown] id="synthetic-read" lang="zh" of="53552aaa"
# 读一读通过筛选的内容。程序能看出商品、名字和时间一样没少，但不检查数量和规格，也不检查消息多写了什么，例如订单里没有的名字。筛选只能限制合成数据有多差。它*值多少*，训练了才知道：同一批订单，一次配模型写的消息，一次配顾客的原话，都从未微调的模型出发训练相同步数，再看真实测试订单上的损失。两边的标签相同，而 JSON 的格式从糟糕的消息里也学得会；所以损失的下降有多少只是因为学会了格式，这个比较分不出来。

# %% id="synthetic-worth"
tuned.save_pretrained("runs/02_do_you_need_it/adapter")
model = tuned.unload()
short_args = dataclasses.replace(
    training_args, max_steps=max(1, max_steps // 6), train_sampling_strategy="random", logging_strategy="no"
)
task = {"instruction": tests["orders"][0]["instruction"]}
sources = {
    "the model's": [task | {"input": message, "output": row["input"]} for message, row in usable],
    "the customers'": [task | {"input": row["output"], "output": row["input"]} for _, row in usable],
}


def to_chats(rows):
    return Dataset.from_list(rows).map(to_prompt_completion, remove_columns=["instruction", "input", "output"])


losses = {}
for writer, rows in sources.items() if usable else ():
    run = SFTTrainer(
        get_peft_model(model, peft_config),
        short_args,
        train_dataset=to_chats(rows),
        eval_dataset=to_chats(tests["orders"]),
        processing_class=tokenizer,
    )
    losses.setdefault("untuned", run.evaluate()["eval_loss"])
    run.train()
    losses[f"{writer} messages"] = run.evaluate()["eval_loss"]
    model = run.model.unload()
for name, loss in losses.items():
    print(f"{name:<26} loss per token of the test orders {loss:.2f}")
if usable:
    untuned_loss, synthetic_loss, real_loss = losses.values()
    print(f"{short_args.max_steps} steps on {len(usable)} orders each, one run each: the model's messages bring")
    print(
        f"{(untuned_loss - synthetic_loss) / (untuned_loss - real_loss):.0%} of the decrease that the customers' bring"
    )
else:
    print("No message is usable: nothing to train on.")

# %% [markdown] id="exercise-cost-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 02`
# checks your saved copy of the whole lesson.
#
# **1.** A request has 340 prompt tokens and an answer of 40 tokens. Prompt tokens cost 0.5 per million, generated ones 2.0.
# What do 1,000 such requests cost?

# %% [markdown] id="exercise-cost-why" lang="zh" of="c16e24be"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 02` 检查你保存的整课练习。
#
# **1.** 一次请求有 340 个提示 token，回答 40 个 token。提示 token 每百万 0.5，生成的 token 每百万 2.0。1,000 次这样的请求要花多少钱？

# %% id="exercise-cost" tags=["exercise"]
request_cost = ...  # your answer

checks.check_request_cost(request_cost)

# %% [markdown] id="exercise-cost-solution"
# <details><summary>Solution</summary>
#
# ```python
# request_cost = 1000 * (340 * 0.5 + 40 * 2.0) / 1e6
# ```
#
# </details>

# %% [markdown] id="exercise-cost-solution" lang="zh" of="c7aef3f2"
# <details><summary>参考答案</summary>
#
# ```python
# request_cost = 1000 * (340 * 0.5 + 40 * 2.0) / 1e6
# ```
#
# </details>

# %% [markdown] id="exercise-labels-why"
# **2.** A classifier without training: don't generate, compare. `logits` is (batch, vocabulary), those of the next token;
# `label_ids` lists one token id per label. Return the labels' probabilities, (batch, labels), as if no other token existed.

# %% [markdown] id="exercise-labels-why" lang="zh" of="2c652a4b"
# **2.** 不训练的分类器：不生成，只比较。`logits` 是 (batch, 词表)，即下一个 token 的 logits；`label_ids` 给出每个标签的 token id。返回各标签的概率，形状 (batch, 标签数)，就当其他 token 不存在。

# %% id="exercise-labels" tags=["exercise"]


def label_probabilities(logits, label_ids):
    return ...  # your code


print(label_probabilities(torch.tensor([[0.0, 5.0, 0.0, 9.0]]), [0, 2]))  # one half each once it is right

checks.check_label_probabilities(label_probabilities)

# %% [markdown] id="exercise-labels-solution"
# <details><summary>Solution</summary>
#
# ```python
# def label_probabilities(logits, label_ids):
#     return logits[:, label_ids].softmax(-1)
# ```
#
# </details>

# %% [markdown] id="exercise-labels-solution" lang="zh" of="225c1538"
# <details><summary>参考答案</summary>
#
# ```python
# def label_probabilities(logits, label_ids):
#     return logits[:, label_ids].softmax(-1)
# ```
#
# </details>

# %% [markdown] id="exercise-calibrated-why"
# **3.** A few-shot prompt makes some labels likelier whatever is asked. Zhao et al. 2021 divide that bias out:
# `probabilities` (batch, labels) are the answers' probabilities, `empty` (labels,) those after the same prompt with an empty
# question. Return the index of the label with the largest ratio, (batch,).

# %% [markdown] id="exercise-calibrated-why" lang="zh" of="d89e7f04"
# **3.** 不管问什么，少样本提示都会让某些标签更容易被选中。Zhao et al. 2021 把这种偏差除掉：`probabilities` (batch, 标签数) 是回答的概率，`empty` (标签数,) 是同一个提示配上空问题时的概率。返回比值最大的标签的下标，形状 (batch,)。

# %% id="exercise-calibrated" tags=["exercise"]


def calibrated_label(probabilities, empty):
    return ...  # your code


print(calibrated_label(torch.tensor([[0.6, 0.4]]), torch.tensor([0.8, 0.2])))  # label 1 once it is right

checks.check_calibrated_label(calibrated_label)

# %% [markdown] id="exercise-calibrated-solution"
# <details><summary>Solution</summary>
#
# ```python
# def calibrated_label(probabilities, empty):
#     return (probabilities / empty).argmax(-1)
# ```
#
# </details>

# %% [markdown] id="exercise-calibrated-solution" lang="zh" of="51aeb61b"
# <details><summary>参考答案</summary>
#
# ```python
# def calibrated_label(probabilities, empty):
#     return (probabilities / empty).argmax(-1)
# ```
#
# </details>

# %% [markdown] id="exercise-cheapest-why"
# **4.** Make the decision a function: `lows` are the lower ends of the intervals of several ways of asking, `costs` their
# prices. Return the index of the cheapest way whose lower end reaches `target`, and -1 (tune, or ask for less) if none does.

# %% [markdown] id="exercise-cheapest-why" lang="zh" of="2ee2d6e8"
# **4.** 把决定写成函数：`lows` 是几种提问方式的区间下端，`costs` 是它们的价格。返回下端达到 `target` 的方式中最便宜的那个的下标；都达不到就返回 -1（去微调，或者降低要求）。

# %% id="exercise-cheapest" tags=["exercise"]


def cheapest_way(lows, costs, target):
    return ...  # your code


print(cheapest_way([0.5, 0.9, 0.85], [0.1, 0.4, 0.3], 0.8))  # 2 once it is right

checks.check_cheapest_way(cheapest_way)

# %% [markdown] id="exercise-cheapest-solution"
# <details><summary>Solution</summary>
#
# ```python
# def cheapest_way(lows, costs, target):
#     enough = [index for index, low in enumerate(lows) if low >= target]
#     return min(enough, key=lambda index: costs[index], default=-1)
# ```
#
# </details>

# %% [markdown] id="exercise-cheapest-solution" lang="zh" of="fe55659d"
# <details><summary>参考答案</summary>
#
# ```python
# def cheapest_way(lows, costs, target):
#     enough = [index for index, low in enumerate(lows) if low >= target]
#     return min(enough, key=lambda index: costs[index], default=-1)
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "orders_zero_shot": results["orders", "zero-shot"]["score"],
    "orders_few_shot": results["orders", longest]["score"],
    "orders_few_shot_valid": results["orders", longest]["valid"],
    "orders_tuned": results["orders", "tuned on orders"]["score"],
    "facts_zero_shot": results["facts", "zero-shot"]["score"],
    "orders_says_tune": decisions["orders"] == "tune",
    "facts_says_prompt": decisions["facts"] == "prompt",
    "prefix_max_abs_diff": prefix_max_abs_diff,
    "train_seconds": train_seconds,
}
bands = {
    "orders_zero_shot": (0, 0.05),
    "orders_few_shot": (0, 0.15),
    "orders_few_shot_valid": (0.5, 1),
    "orders_tuned": (0.75, 1),
    "facts_zero_shot": (0.8, 1),
    "orders_says_tune": (1, 1),
    "facts_says_prompt": (1, 1),
}
course.record(outcomes, bands if PROFILE == "cpu" else {})

# %% [markdown] id="next"
# **You keep** `runs/02_do_you_need_it/adapter`: the orders' adapter.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. A larger model shifts the table: the decision is one for *this* model, this
# test and this target, so run it again when one of them changes.
#
# **Next:** what LoRA is and why it works, in [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="next" lang="zh" of="e6fdaad4"
# **你得到的文件：** `runs/02_do_you_need_it/adapter`，订单任务的适配器。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。模型变大，这张表就会变：这个决定只对*这个*模型、这套测试、这个目标成立，其中任何一个变了都要重跑。
#
# **下一课：** LoRA 是什么、为什么有效，见 [03 · LoRA](03_lora.ipynb)。
