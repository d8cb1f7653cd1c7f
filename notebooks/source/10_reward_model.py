# %% [markdown] id="title"
# # 10 · A reward model: taste as a number
#
# "I like this answer better" is easy to say and hard to write as a program. A reward model learns it from pairs: two
# answers to one question, one of them chosen. Here the raters are simulated, so that for once the truth is known: you
# plant a taste, let noisy raters choose by it, recover it by two ways (a fit of two numbers, and a language model
# that sees nothing but text), and check whether its probabilities can be trusted. Then you find out that a reward
# model has learned length instead (*length bias*).
#
# | you will have | measured as |
# |---|---|
# | the Bradley-Terry loss by hand | largest difference to TRL's, same batch |
# | a reward model, in `runs/10_reward_model/adapter` | held-out pairs ranked as the raters did, against the best that is possible |
# | a probability that you can trust, or not | calibration error on 216 held-out pairs |
# | three kinds of judges side by side | a program, a model that is asked (RLAIF), a reward model |
# | a reward model fooled by length, and the fix | a probe: style against length |
#
# **Cost:** about 5 minutes (27 without bfloat16) and 4 GB on two CPU cores, an estimated 3 minutes on a T4. **Before
# this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="5dee2414"
# # 10 · 奖励模型：把口味变成数字
#
# “我更喜欢这个回答”说起来容易，写成程序却难。奖励模型从偏好对中学会它：同一个问题的两个回答，其中一个被选中。本课的评分者是模拟的，所以难得地知道真相：你设定一种口味，让带噪声的评分者按它来选，再用两种办法把口味还原出来（拟合两个数，以及只看文本的语言模型），并检查它给出的概率能不能信。最后查出一个只看长度的奖励模型（长度偏差）。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 Bradley-Terry 损失 | 同一批数据上与 TRL 的最大差值 |
# | 一个奖励模型，保存在 `runs/10_reward_model/adapter` | 留出偏好对中排序与评分者一致的比例，与理论上限对比 |
# | 一个可信或不可信的概率 | 216 个留出偏好对上的校准误差 |
# | 三种裁判的对比 | 程序、被提问的模型（RLAIF）、奖励模型 |
# | 一个被长度骗了的奖励模型，以及解决办法 | 探针：风格对长度 |
#
# **耗时与内存：** 两个 CPU 核心上约 5 分钟（不支持 bfloat16 时约 27 分钟）、4 GB 内存，T4 上估计 3 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。
#
# 内置的小模型只懂英文，所以本课的回答是英文的；换成 `t4` 以上的配置（Qwen），把模板换成中文就能得到中文的奖励模型。

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
import dataclasses
import math
import os
import random
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from datasets import Dataset, load_dataset
from IPython.display import display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from ftlab import checks, cpu, device, evaluate, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment, label_panel

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
i_rate = False  # True: you rate the first pairs; False: a simulated rater does, as in a headless run
taste_style = 2.0  # planted taste: what the opening "In short, " adds to the reward
taste_length = -0.5  # planted taste: what ten more words add to the reward
r = 8  # rank of the adapter
learning_rate = 0.0  # 0: the profile's own
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 8  # pairs per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, steps of a side experiment, learning rate, held-out topics, pairs that RLAIF judges
    "smoke": ("smollm2-135m-short", 2, 1, 5e-4, 3, 2),
    "cpu": ("smollm2-135m", 40, 16, 5e-4, 72, 48),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 42, 20, 2e-4, 72, 100),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 42, 20, 1e-4, 72, 100),
}
default_model, default_steps, side_steps, default_rate, topic_count, asked_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
learning_rate = learning_rate or default_rate
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("preference", ax)
plt.show()

# %% [markdown] id="rlhf-why"
# ## The four models of RLHF
# Reinforcement learning from human feedback keeps four models in memory. The **policy** (actor) writes answers and is
# the one that is trained. The **reference** is the policy as it was; the policy pays for moving away from it (KL). The
# **reward model** stands in for the raters and scores each answer: that is this lesson. The **value model** (critic)
# predicts the score while the answer is still being written, so that PPO knows which tokens were better than expected.
# [11](11_ppo_grpo.ipynb) trains with all four, and GRPO without the value model; [12](12_dpo.ipynb) keeps only the first
# two.

# %% [markdown] id="rlhf-why" lang="zh" of="d1f04aa2"
# ## RLHF 的四个模型
# 基于人类反馈的强化学习（RLHF）要在内存里放四个模型。**策略模型**（policy，actor）写回答，训练的就是它。**参考模型**（reference）是训练前的策略模型，策略偏离它就要付出代价（KL）。**奖励模型**（reward model）代替评分者给每个回答打分，这就是本课的内容。**价值模型**（value model，critic）在回答还没写完时预测得分，好让 PPO 知道哪些 token 比预期更好。[第 11 课](11_ppo_grpo.ipynb)四个都用上，其中 GRPO 不要价值模型；[第 12 课](12_dpo.ipynb)只留前两个。

# %% id="rlhf"
boxes = {
    "raters\n(pairs)": (0, 1), "reward model\n(this lesson)": (0, 0), "policy\n(actor)": (2, 0),
    "reference\n(frozen)": (4, 1), "value model\n(critic)": (4, 0),
}  # fmt: skip
arrows = [  # from, to, label, where it stands
    ((0, 0.72), (0, 0.3), "train", (0.25, 0.48)), ((1.45, 0.08), (0.65, 0.08), "answers", (1.05, 0.14)),
    ((0.65, -0.12), (1.45, -0.12), "reward", (1.05, -0.32)), ((3.4, 0.85), (2.5, 0.28), "KL", (2.8, 0.62)),
    ((3.4, 0), (2.5, 0), "expected reward", (2.95, 0.06)),
]  # fmt: skip
fig, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
for label, (x, y) in boxes.items():
    here = "this lesson" in label
    face, ink = ("#4c956c", "white") if here else ("white", "#333")
    ax.text(x, y, label, ha="center", va="center", color=ink, bbox={"boxstyle": "round,pad=0.5", "facecolor": face})
for start, end, label, place in arrows:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#555"})
    ax.text(*place, label, ha="center", fontsize=8)
ax.set(xlim=(-0.8, 4.8), ylim=(-0.4, 1.4), title="Who tells the policy what is good?")
ax.axis("off")
plt.show()

# %% [markdown] id="answers-why"
# ## Answers that differ in one thing at a time
# All answers here are right; they differ in style (does it open with "In short, "?) and in length (one, two or three
# sentences). The training topics and the held-out ones have nothing in common.

# %% [markdown] id="answers-why" lang="zh" of="136da216"
# ## 每次只差一处的回答
# 这里所有回答的内容都对，只在两处不同：风格（是否以 “In short, ” 开头）和长度（一句、两句或三句）。训练主题与留出主题没有任何重合。


# %% id="answers"
OPENING = "In short, "
KINDS = [(styled, sentences) for styled in (False, True) for sentences in (1, 2, 3)]


def has_style(answer):
    return answer.startswith(OPENING)


def write(row, styled, sentences):
    """Return an answer about a topic: with or without the opening, one to three sentences."""
    definition = row["definition"]
    opening = OPENING + definition[0].lower() + definition[1:] if styled else definition
    return " ".join([opening, *row["facts"][: sentences - 1]])


def draw_pairs(rows, per_topic, seed):
    """Return pairs of different answers, as (question, first answer, second answer)."""
    chance = random.Random(seed)
    kinds = [(row, chance.sample(KINDS, 2)) for row in rows for _ in range(per_topic)]
    pairs = [(f"What is {row['topic']}?", write(row, *one), write(row, *other)) for row, (one, other) in kinds]
    return chance.sample(pairs, len(pairs))


topics = list(load_dataset("json", data_files="data/topics_en.jsonl", split="train"))
held_out_topics = list(load_dataset("json", data_files="data/topics_en_eval.jsonl", split="train"))[:topic_count]
train_raw, held_out_raw = draw_pairs(topics, 4, seed), draw_pairs(held_out_topics, 3, seed + 1)
print(*train_raw[0], sep="\n")
print(f"{len(train_raw)} pairs on {len(topics)} topics; held out: {len(held_out_raw)} on {len(held_out_topics)}")

# %% [markdown] id="raters-why"
# ## Raters with a known taste
# The planted taste is one number per answer: `taste_style` if it has the opening, plus `taste_length` for every ten words.
# A rater is not a machine: to each reward comes noise, and the larger sum wins. With noise from the Gumbel distribution
# this is exactly Bradley and Terry's model (1952): the first answer wins with probability `sigmoid(difference)`.
#
# **Predict before you run.** A judge that knows the taste perfectly ranks held-out pairs. How often does it agree with
# the noisy raters, in percent?

# %% [markdown] id="raters-why" lang="zh" of="aa9e39dd"
# ## 口味已知的评分者
# 设定的口味给每个回答一个数：有这个开头就加 `taste_style`，每多十个词加 `taste_length`。评分者不是机器：每个奖励都加上噪声，总和较大的回答获胜。噪声取 Gumbel 分布时，这正好就是 Bradley-Terry 模型（1952）：第一个回答以 `sigmoid(差值)` 的概率获胜。
#
# **先预测，再运行。** 一个完全掌握口味的裁判给留出的偏好对排序，它有百分之多少的次数与带噪声的评分者一致？

# %% id="predict"
guess_ceiling = 95  # your guess, in percent: the perfect judge agrees with the raters
guess_bias = 50  # your guess, in percent: probes passed by the judge of tired raters (further down)


# %% id="raters"
def features(answer):
    return has_style(answer), len(answer.split()) / 10


def reward(answer, taste):
    return sum(weight * value for weight, value in zip(taste, features(answer), strict=True))


def rate(pairs, taste, seed):
    """Return the pairs as noisy raters of a given taste see them: question, chosen, rejected, first (was it chosen?)."""
    chance = random.Random(seed)
    rated = []
    for question, one, other in pairs:
        noisy = [reward(answer, taste) - math.log(-math.log(chance.random())) for answer in (one, other)]
        first = noisy[0] > noisy[1]
        chosen, rejected = (one, other) if first else (other, one)
        rated.append({"instruction": question, "chosen": chosen, "rejected": rejected, "first": first})
    return rated


taste = (taste_style, taste_length)
rated, held_out = rate(train_raw, taste, seed + 2), rate(held_out_raw, taste, seed + 3)
true_margins = [reward(row["chosen"], taste) - reward(row["rejected"], taste) for row in held_out]
ceiling = sum(margin > 0 for margin in true_margins) / len(held_out)
print(f"you predicted {guess_ceiling}%, measured {ceiling:.0%}: no judge can be expected to do better")

# %% [markdown] id="recover-why"
# ### Recover the taste from the choices
# If the taste has two numbers, logistic regression on the two differences finds them, and says how sure it is (95%
# intervals, from the curvature of the likelihood). Newton's method, in a few lines:


# %% [markdown] id="recover-why" lang="zh" of="6aa7b824"
# ### 从选择中还原口味
# 如果口味只有两个数，对两个差值做逻辑回归就能求出，还能说出有多大把握（95% 置信区间，来自似然函数的曲率）。牛顿法，几行代码：


# %% id="recover"
def recover(rated):
    """Return the two weights of a taste and the half-widths of their 95% intervals."""
    rows = [zip(features(row["chosen"]), features(row["rejected"]), strict=True) for row in rated]
    x = torch.tensor([[one - other for one, other in row] for row in rows], dtype=torch.float64)  # (pairs, 2)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(20):
        surprise = torch.sigmoid(-x @ weights)  # the probability of the choice that was not made
        curvature = (x * (surprise * (1 - surprise))[:, None]).T @ x
        weights = weights + torch.linalg.solve(curvature, x.T @ surprise)
    return weights.tolist(), (1.96 * torch.linalg.inv(curvature).diagonal().sqrt()).tolist()


weights, half = recover(rated)
inside = [abs(found - planted) <= width for found, planted, width in zip(weights, taste, half, strict=True)]
for name, planted, found, width, hit in zip(("style", "ten words"), taste, weights, half, inside, strict=True):
    print(f"{name:<10} planted {planted:5.2f}, recovered {found:5.2f} ± {width:.2f}: {'inside' if hit else 'outside'}")
print(f"({len(rated)} noisy choices; 95 of 100 such intervals hold the planted number)")

# %% [markdown] id="rate-why"
# ## Your turn to rate
# With `i_rate = True` the next cell shows eight pairs: press a button, or type 1, 2, or 0 for neither. Each pick is
# written at once, as a registered data set, and takes the place of a simulated one. Without you, a simulated rater picks.


# %% [markdown] id="rate-why" lang="zh" of="cc83ece4"
# ## 轮到你打分
# 设 `i_rate = True`，下一格会显示八对回答：按按钮，或输入 1、2，都不选就输入 0。每次选择立刻写入文件，成为一份已登记的数据集，并替换一条模拟的评分。你不评时，由模拟的评分者来选。


# %% id="rate"
def rater(question, left, right):
    return 0 if rate([(question, left, right)], taste, left)[0]["first"] else 1


first_eight = list({row[0]: row for row in train_raw}.values())[:8]
pile = label_panel.Labels(first_eight, "mine", "runs/10_reward_model")
if i_rate:
    display(label_panel.panel(pile))
else:
    print(pile.rate(rater), "preferences in", pile.path)


# %% id="dataset"
def conversation(row, side):
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row[side]}]


def to_dataset(rows):
    return Dataset.from_list([{side: conversation(row, side) for side in ("chosen", "rejected")} for row in rows])


mine = []
if os.path.exists("runs/10_reward_model/mine.jsonl"):
    mine = list(load_dataset("json", data_files="runs/10_reward_model/mine.jsonl", split="train"))
train_pairs = mine + rated[len(mine) :]
print(len(mine), "of", len(train_pairs), "pairs come from the panel")

# %% [markdown] id="idea-why"
# ## From two rewards to one probability
# A reward model reads a whole answer and gives one number. Bradley and Terry say what two such numbers mean: the better
# one wins with probability `sigmoid(difference)`. Only the difference counts.

# %% [markdown] id="idea-why" lang="zh" of="da90f0ea"
# ## 从两个奖励到一个概率
# 奖励模型读完整个回答，给出一个数。Bradley-Terry 模型说明两个这样的数意味着什么：更好的那个以 `sigmoid(差值)` 的概率获胜。只有差值重要。

# %% id="literal"
for better, worse in ((2.0, 0.5), (2.0, 2.0), (0.5, 2.0), (102.0, 100.5)):
    probability = 1 / (1 + math.exp(worse - better))
    print(f"rewards {better:5} and {worse:5}: wins with {probability:.2f}, loss {-math.log(probability):.2f}")

# %% [markdown] id="scratch-why"
# The loss is minus the logarithm of the probability that the raters did what they did. One line:


# %% [markdown] id="scratch-why" lang="zh" of="644360f7"
# 损失就是“评分者做出了这样的选择”的概率的负对数。一行代码：


# %% id="scratch"
def bradley_terry_loss(chosen_rewards, rejected_rewards):  # both (pairs,)
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards).mean()


# %% [markdown] id="load-why"
# The model is the one you know, with its vocabulary head replaced by a single output, `num_labels=1`. The reward is read
# at the last token. That head is new, so it must be trained along with the adapter (`task_type="SEQ_CLS"` sees to it).

# %% [markdown] id="load-why" lang="zh" of="e5411a24"
# 模型还是你熟悉的那个，只是词表输出头换成了单个输出，`num_labels=1`。奖励在最后一个 token 处读出。这个头是新的，所以必须和适配器一起训练（`task_type="SEQ_CLS"` 会处理好）。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def reward_model(dtype=dtype):
    """Return a fresh reward model: the pretrained weights, a new head, a new adapter."""
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=dtype, device_map=where)
    base.config.pad_token_id = tokenizer.pad_token_id
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="SEQ_CLS")
    return get_peft_model(base, config)


# %% id="config"
training_args = RewardConfig(
    output_dir="runs/10_reward_model",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per answer, question included
    logging_steps=max(1, max_steps // 10),
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)

# %% [markdown] id="parity-why"
# ### Equal to the library
# One batch, 32-bit numbers, the trainer's own loss against our line.

# %% [markdown] id="parity-why" lang="zh" of="c731aff4"
# ### 与库一致
# 一批数据，float32，训练器自己的损失与我们的那一行比较。

# %% id="parity"
exact = RewardTrainer(reward_model("float32"), training_args, train_dataset=to_dataset(train_pairs[:16]))
batch = next(iter(exact.get_train_dataloader()))
with torch.no_grad():
    theirs = exact.compute_loss(exact.model.eval(), dict(batch)).item()
    chosen, rejected = exact.model(**batch).logits.squeeze(-1).chunk(2)
bt_loss_max_abs_diff = abs(theirs - bradley_terry_loss(chosen, rejected).item())
print(f"TRL {theirs:.6f}, by hand {bradley_terry_loss(chosen, rejected):.6f}, difference {bt_loss_max_abs_diff:.1e}")
assert bt_loss_max_abs_diff <= 1e-5
del exact

# %% [markdown] id="baseline-why"
# ## Start with a baseline: what does "knows nothing" score?
# An untrained head knows nothing about taste. How often does it rank a held-out pair as the raters did? A coin would get
# 50% on average.


# %% [markdown] id="baseline-why" lang="zh" of="9f70b5ea"
# ## 先测基线：“一无所知”能得多少分？
# 没训练过的头对口味一无所知。它给留出的偏好对排序，有多少次与评分者一致？抛硬币平均是 50%。


# %% id="rewards"
def batches(questions, answers, size=32):
    """Yield tokenized conversations, `size` at a time."""
    rows = [conversation({"instruction": q, "answer": a}, "answer") for q, a in zip(questions, answers, strict=True)]
    for start in range(0, len(rows), size):
        texts = tokenizer.apply_chat_template(rows[start : start + size], tokenize=False)
        batch = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
        yield batch.to(where)


@torch.no_grad()
def rewards(model, questions, answers):
    """Return one reward per answer, as a list."""
    model.eval()
    found = [model(**batch).logits.squeeze(-1).float() for batch in batches(questions, answers)]
    return torch.cat(found).tolist()


def margins(model, rows):
    """Return chosen reward minus rejected reward for every pair."""
    questions = [row["instruction"] for row in rows]
    good, bad = (rewards(model, questions, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    return [g - b for g, b in zip(good, bad, strict=True)]


def accuracy(differences):
    return sum(difference > 0 for difference in differences) / len(differences)


# %% id="before"
model = reward_model()
margins_before = margins(model, held_out)
accuracy_before = accuracy(margins_before)
print(f"before: {accuracy_before:.0%} of {len(held_out)} held-out pairs")


# %% [markdown] id="nothing-why"
# To see what chance can do here, try a thousand random heads. The last hidden state of each answer is computed once; a
# head is one random vector, and its reward a dot product.


# %% [markdown] id="nothing-why" lang="zh" of="d4539a6a"
# 想看清随机能做到什么程度，就试一千个随机的头。每个回答的最后隐藏状态只需算一次；一个头就是一个随机向量，奖励就是点积。


# %% id="nothing"
@torch.no_grad()
def last_hidden(rows, side):
    """Return the last token's hidden state of every answer: (rows, hidden size)."""
    found = []
    for batch in batches([row["instruction"] for row in rows], [row[side] for row in rows]):
        states = model.get_base_model().model(**batch).last_hidden_state
        found.append(states[torch.arange(len(states)), batch["attention_mask"].sum(1) - 1].float())
    return torch.cat(found)


difference = last_hidden(held_out, "chosen") - last_hidden(held_out, "rejected")
heads = torch.randn(difference.shape[1], 1000, generator=torch.Generator().manual_seed(seed))
by_chance = ((difference.cpu() @ heads) > 0).float().mean(0)
coin = 0.5 / math.sqrt(len(held_out))
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.hist(100 * by_chance, bins=30, color="#4c956c", label="1,000 random heads")
ax.axvspan(50 - 196 * coin, 50 + 196 * coin, color="#e69f00", alpha=0.3, label="95% of coins")
ax.axvline(100 * accuracy_before, color="#333", linestyle="--", label="this untrained head")
ax.set(xlabel="held-out pairs ranked as the raters did, %", ylabel="heads", title="What does knowing nothing score?")
ax.legend(fontsize=8)
plt.show()
outside = ((by_chance - 0.5).abs() > 1.96 * coin).float().mean().item()
print(f"random heads: {by_chance.min():.0%} to {by_chance.max():.0%}; outside the coin's interval: {outside:.0%}")

# %% [markdown] id="nothing-read"
# A random head isn't a coin. It is one fixed direction in the model's states, and the pairs differ in the same two things
# again and again: whichever side of length or opening the direction happens to favour, it favours in all pairs alike. So
# a baseline far from 50%, on either side, says nothing about knowledge. Compare with many random heads, not with a coin.

# %% [markdown] id="nothing-read" lang="zh" of="9aabaaf1"
# 随机的头并不是硬币。它是模型隐藏空间里的一个固定方向，而这些偏好对总在同样两处不同：这个方向碰巧偏向长还是短、偏向有没有开头，就会在所有偏好对里一致地偏下去。所以基线远离 50%（无论哪一边）并不说明它懂什么。要拿许多随机的头来比，而不是拿硬币来比。

# %% [markdown] id="train-why"
# ## Train


# %% [markdown] id="train-why" lang="zh" of="dce8f48c"
# ## 训练


# %% id="train"
def train(rows, max_steps):
    """Train a fresh reward model on pairs; return it and its log."""
    args = dataclasses.replace(training_args, max_steps=max_steps)
    trainer = RewardTrainer(reward_model(), args, train_dataset=to_dataset(rows), processing_class=tokenizer)
    trainer.train()
    return trainer.model, trainer.state.log_history


started = time.perf_counter()
model, log = train(train_pairs, max_steps)
train_seconds = time.perf_counter() - started
model.save_pretrained("runs/10_reward_model/adapter")
print(f"{train_seconds:.0f} seconds")

# %% id="curves"
steps = [row for row in log if "accuracy" in row]
best_loss = sum(math.log1p(math.exp(-margin)) for margin in true_margins) / len(true_margins)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([row["step"] for row in steps], [row["loss"] for row in steps])
left.axhline(math.log(2), color="grey", linestyle=":", label="a coin")
left.axhline(best_loss, color="#e69f00", linestyle="--", label="the planted taste itself")
left.set(xlabel="optimizer step", ylabel="Bradley-Terry loss", title="How far is there to go?")
left.legend()
right.plot([row["step"] for row in steps], [row["accuracy"] for row in steps])
right.axhline(ceiling, color="#e69f00", linestyle="--")
right.set(xlabel="optimizer step", ylabel="pairs of the batch", ylim=(0, 1.05), title="Does it rank as the raters do?")
plt.show()

# %% [markdown] id="after-why"
# ## Does it agree with held-out raters, and with the truth?
# The raters are noisy, so nobody agrees with all of them. The share that the planted taste itself reaches is the best that can be
# expected; on this one set of choices a judge may land a little above it by chance (see the interval). The planted taste
# says which answer *should* have won; only a simulation can ask that.

# %% [markdown] id="after-why" lang="zh" of="d2708a84"
# ## 它与留出的评分者一致吗？与真相一致吗？
# 评分者带噪声，所以谁也不可能与他们全都一致。设定的口味自己达到的比例，是能期望的最好水平；在这一组选择上，裁判可能碰巧略高一点（看置信区间）。设定的口味说明哪个回答*本该*获胜；只有模拟实验才能问这个问题。

# %% id="after"
margins_after = margins(model, held_out)
reward_accuracy = accuracy(margins_after)
agrees = sum((found > 0) == (true > 0) for found, true in zip(margins_after, true_margins, strict=True)) / len(held_out)
print(f"agrees with the raters:        {accuracy_before:.0%} -> {reward_accuracy:.0%}, of at most about {ceiling:.0%}")
print(f"agrees with the planted taste: {agrees:.0%} of {len(held_out)} pairs on {len(held_out_topics)} topics")

# %% id="interval"
low, high = evaluate.interval(reward_accuracy, len(held_out))
print(f"95% interval of the first share: {low:.0%} to {high:.0%}")

# %% [markdown] id="implied-why"
# ### The taste inside the reward model
# It was never told about style or length; it saw text. Fit its margins with the same two features: which taste does it
# have?

# %% [markdown] id="implied-why" lang="zh" of="525dd4d6"
# ### 奖励模型里的口味
# 没人告诉过它什么是风格、什么是长度，它只看到了文本。用同样两个特征去拟合它的分差：它的口味是怎样的？


# %% id="implied"
def implied_taste(differences, rows):
    """Return the two weights that explain a judge's margins best (least squares)."""
    pairs = [zip(features(row["chosen"]), features(row["rejected"]), strict=True) for row in rows]
    x = torch.tensor([[float(one - other) for one, other in pair] for pair in pairs])
    return torch.linalg.lstsq(x, torch.tensor(differences)[:, None]).solution.flatten().tolist()


judge_taste = implied_taste(margins_after, held_out)
print(f"{'':<10}{'planted':>9}{'fit of two numbers':>22}{'reward model':>14}")
for name, planted, found, width, judged in zip(("style", "ten words"), taste, weights, half, judge_taste, strict=True):
    print(f"{name:<10}{planted:>9.2f}{found:>14.2f} ± {width:.2f}{judged:>14.2f}")

# %% [markdown] id="samples-why"
# Six answers to one held-out question, with what the planted taste and the reward model think of each, both counted from
# the first answer (only differences mean anything):

# %% [markdown] id="samples-why" lang="zh" of="6bcc0ddc"
# 同一个留出问题的六个回答，看看设定的口味和奖励模型各给多少分。两者都以第一个回答为零点（只有差值有意义）：

# %% id="samples"
topic = held_out_topics[0]
texts = [write(topic, *kind) for kind in KINDS]
judged = rewards(model, [f"What is {topic['topic']}?"] * len(texts), texts)
for text, score in zip(texts, judged, strict=True):
    planted = reward(text, taste) - reward(texts[0], taste)
    print(f"planted {planted:+.2f}, reward model {score - judged[0]:+.2f}: {text}")

# %% [markdown] id="calibration-why"
# ## When it says 80%, is it 80%?
# `sigmoid(margin)` claims a probability. Two checks. Against the raters: show each pair in a random order, sort the claims
# into bins, count how often the first answer was chosen. The mean distance between claim and count is the *expected
# calibration error*. Against the truth: the planted taste gives each pair its true probability.


# %% [markdown] id="calibration-why" lang="zh" of="20cc3d05"
# ## 它说 80%，真是 80% 吗？
# `sigmoid(差值)` 声称的是一个概率。检验有两种。对照评分者：把每一对按随机次序展示，把这些概率分进几个区间，数一数第一个回答有多少次被选中，声称值与实际比例的平均距离就是*期望校准误差*（ECE）。对照真相：设定的口味给出了每一对的真实概率。


# %% id="calibration"
order = [random.Random(seed + number).choice((1, -1)) for number in range(len(held_out))]


def claims(differences):
    return [1 / (1 + math.exp(-sign * margin)) for sign, margin in zip(order, differences, strict=True)]


def calibration(claimed, bins=5):
    """Return (mean claim, share chosen, count) for every bin that has pairs."""
    rows = []
    for number in range(bins):
        inside = [i for i, claim in enumerate(claimed) if number == min(int(claim * bins), bins - 1)]
        if inside:
            mean_claim = sum(claimed[i] for i in inside) / len(inside)
            rows.append((mean_claim, sum(order[i] == 1 for i in inside) / len(inside), len(inside)))
    return rows


# %% id="calibration-plot"
claimed, truth = claims(margins_after), claims(true_margins)
rows = calibration(claimed)
calibration_error = sum(count * abs(claim - share) for claim, share, count in rows) / len(claimed)
probability_error = sum(abs(claim - true) for claim, true in zip(claimed, truth, strict=True)) / len(claimed)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax in (left, right):
    ax.plot([0, 1], [0, 1], ":", color="grey")
    ax.set(xlabel="claimed probability", xlim=(0, 1), ylim=(-0.03, 1.03))
spread = [1.96 * math.sqrt(max(share * (1 - share), 0.25 / count) / count) for _, share, count in rows]
left.errorbar([row[0] for row in rows], [row[1] for row in rows], yerr=spread, fmt="s", color="#4c956c", capsize=4)
left.set(ylabel="share that raters chose", title="Do the raters confirm it?")
right.plot(claimed, truth, ".", color="#0072b2", alpha=0.5)
right.set(ylabel="true probability", title="Does the planted taste?")
plt.show()
print(f"expected calibration error on {len(held_out)} pairs: {calibration_error:.3f}")
print(f"mean distance to the true probability: {probability_error:.3f}")

# %% [markdown] id="calibration-read"
# A reward model is *overconfident* if its claims lie nearer to 0 and 1 than the shares that were counted; a weight in
# the table above that is larger than the planted one says the same. For ranking this does no harm. It does where the
# number itself is used, as a probability or as the reward of PPO: then divide all margins by one number that is fitted
# on validation pairs (*temperature scaling*, Guo et al. 2017, arXiv:1706.04599).

# %% [markdown] id="calibration-read" lang="zh" of="4e675492"
# 如果奖励模型声称的概率比实际数出来的比例更靠近 0 和 1，就叫*过度自信*（overconfident）；上面那张表里某个权重大于设定的值，说的是同一件事。只用来排序时没有影响；要用这个数本身时，例如当作概率，或者当作 PPO 的奖励，就有影响：这时把所有分差除以同一个数，这个数在验证偏好对上拟合（*温度缩放*，temperature scaling，Guo 等 2017，arXiv:1706.04599）。

# %% [markdown] id="judges-why"
# ## Three kinds of judges
# - A **program** checks what a program can check, here the opening: a *verifiable reward*. Cheap, exact, and blind to all
#   else.
# - **RLAIF**: a language model is *asked* which answer is better, no training. Asked in both orders, because such judges
#   favour a position.
# - A **reward model** is trained on choices.
#
# All three on the same held-out pairs, against the planted taste:


# %% [markdown] id="judges-why" lang="zh" of="a0ad9c55"
# ## 三种裁判
# - **程序**检查程序能检查的东西，这里是开头：这叫*可验证奖励*（verifiable reward）。便宜、精确，但对其余一切视而不见。
# - **RLAIF**：直接*问*一个语言模型哪个回答更好，不训练。两种次序都要问，因为这类裁判会偏向某个位置。
# - **奖励模型**由评分者的选择训练而来。
#
# 三种裁判用同样的留出偏好对，以设定的口味为准来比较：


# %% id="asked"
asked = held_out[:asked_count]
assistant = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map=where).eval()
letters = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in ("A", "B")]


@torch.no_grad()
def prefers_first(row, first, second):
    """Return by how much (log-odds) the model says A, the first answer, when asked which one is better."""
    text = f"Question: {row['instruction']}\nAnswer A: {first}\nAnswer B: {second}\nWhich answer is better, A or B?"
    chat = [{"role": "user", "content": f"{text} A good answer opens with the gist and is short. Say only A or B."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    logits = assistant(**inputs.to(where)).logits[0, -1, letters].float()
    return (logits[0] - logits[1]).item()


both = [
    (prefers_first(row, row["chosen"], row["rejected"]), prefers_first(row, row["rejected"], row["chosen"]))
    for row in asked
]
says_first = sum((one > 0) + (other > 0) for one, other in both) / (2 * len(both))
asked_margins = [one - other for one, other in both]  # the position cancels


# %% id="judges"
def right_share(differences, rows):
    """Return the share of pairs ranked as the planted taste does; a tie counts as half."""
    true = [reward(row["chosen"], taste) - reward(row["rejected"], taste) for row in rows]
    points = [0.5 if not found else (found > 0) == (want > 0) for found, want in zip(differences, true, strict=True)]
    return sum(points) / len(points)


program_margins = [has_style(row["chosen"]) - has_style(row["rejected"]) for row in held_out]
shares = {
    "program": right_share(program_margins, held_out),
    "model, asked": right_share(asked_margins, asked),
    "reward model": agrees,
}
for name, share in shares.items():
    count = len(asked) if name == "model, asked" else len(held_out)
    print(f"{name:<14} ranks {share:.0%} of {count} pairs as the planted taste does")
print(f"the model that is asked says A in {says_first:.0%} of its verdicts; without position bias it would be 50%")

# %% [markdown] id="judges-read"
# The last line belongs to the second judge: one that names the same position nearly every time has hardly compared the two
# answers. Measure that before you let a model judge, and take a bigger one if it fails.

# %% [markdown] id="judges-read" lang="zh" of="276a3340"
# 最后一行说的是第二种裁判：如果几乎每次都选同一个位置，它就没有真正比较过两个回答。让模型当裁判之前先测这一点；不合格就换更大的模型。

# %% [markdown] id="break-why"
# ## What goes wrong: length bias
# Say the raters were tired: the same taste for style, and on top a strong dislike of reading. Nobody planned it, and
# the data set does not tell.
#
# A *probe* is a set made on purpose, where the two explanations disagree: three sentences **with** the opening
# against one sentence **without**. The planted taste prefers the styled one. You predicted above how many probes the
# judge of the tired raters passes.


# %% [markdown] id="break-why" lang="zh" of="52a05cee"
# ## 故意出错：长度偏差（length bias）
# 假设评分者累了：对风格的口味不变，但非常不想读长文。没人有意为之，数据里也看不出来。
#
# *探针*是特意做的一组数据，让两种解释彼此矛盾：**有**开头的三句话，对**没有**开头的一句话。按设定的口味，有风格的那个更好。前面你已经预测了：累了的评分者教出来的裁判能通过多少探针。


# %% id="biased"
tired = (taste_style, taste_length - 3)
probe = [
    {"instruction": f"What is {row['topic']}?", "chosen": write(row, True, 3), "rejected": write(row, False, 1)}
    for row in held_out_topics
]
biased_model, _ = train(rate(train_raw, tired, seed + 4), side_steps)
biased_margins = margins(biased_model, held_out)
tired_test = rate(held_out_raw, tired, seed + 5)
looks_fine = accuracy(margins(biased_model, tired_test))
probe_biased = accuracy(margins(biased_model, probe))
print(f"held-out pairs rated by the same tired raters: {looks_fine:.0%}")
print(f"probes passed: you predicted {guess_bias}%, measured {probe_biased:.0%} of {len(probe)}")

# %% [markdown] id="fix-why"
# ### The fix is in the data
# On pairs rated by the same people it looks good: the flaw is in the raters and in the test alike. Don't ask tired
# raters about length at all: show them two answers of (nearly) the same length, so that only style can decide. Same
# raters, same number of pairs, same loss, same steps.

# %% [markdown] id="fix-why" lang="zh" of="c8df9191"
# ### 办法在数据里
# 在同一批人评的偏好对上，它看起来很好：毛病同时藏在评分者和测试里。那就别让累了的评分者去比长度：给他们看长度（几乎）相同的两个回答，只有风格能决定胜负。评分者、偏好对数量、损失、步数都不变。

# %% id="fix"
matched_raw = [
    (f"What is {row['topic']}?", write(row, True, size), write(row, False, size))
    for row in topics
    for size in (1, 2, 3)
]
matched_raw = random.Random(seed).sample(matched_raw, len(matched_raw))
fixed_model, _ = train(rate(matched_raw, tired, seed + 6), side_steps)
fixed_margins = margins(fixed_model, held_out)
probe_fixed = accuracy(margins(fixed_model, probe))
probe_careful = accuracy(margins(model, probe))

# %% id="probe-plot"
probes = {"tired": probe_biased, "fixed": probe_fixed, "careful": probe_careful}
tested = {"tired": biased_margins, "fixed": fixed_margins, "careful": margins_after}
ordinary = {name: right_share(found, held_out) for name, found in tested.items()}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
plots.plot_scores(probes, len(probe), left)
plots.plot_scores(ordinary, len(held_out), right)
left.set(ylabel="ranked as the planted taste, %", title=f"Does it pass the probe? {len(probe)} topics")
right.set(ylabel="", title=f"And on ordinary pairs? {len(held_out)} pairs")
plt.show()

# %% [markdown] id="probe-read"
# Judge a fix by both panels. The left one says whether the flaw is gone, the right one what the fix costs. Many
# ordinary pairs differ in length alone, and from pairs of equal length a model learns nothing about length: neither the
# tired raters' dislike nor the planted taste. The *careful* model, trained on the ratings of raters who were not tired,
# has learned both.

# %% [markdown] id="probe-read" lang="zh" of="6689c4d5"
# 修得好不好，要看两幅图。左图说明毛病还在不在，右图说明修复的代价。许多普通偏好对只差在长度上，而从长度相同的偏好对里，模型学不到任何关于长度的东西：既学不到累了的评分者的厌恶，也学不到设定的口味。*careful* 用的是没有累的评分者的评分，两样都学到了。

# %% [markdown] id="experiment-why"
# ## Experiment
# Drag `length_bias`: what ten more words add to what the raters want, beyond the planted taste. The stored pairs are
# rated again with it, and the taste is recovered from the choices. Watch three things: the recovered weights; which
# kind of answer would win a tournament; and the same tournament with the length term taken out of the recovered reward,
# which is what *length-controlled* leaderboards do
# (Dubois et al. 2024, arXiv:2404.04475).


# %% [markdown] id="experiment-why" lang="zh" of="278cc105"
# ## 动手试一试
# 拖动 `length_bias`：在设定的口味之外，每多十个词再加多少分。已存的偏好对会按它重新评分，再从选择中还原口味。注意三件事：还原出的权重；哪一类回答会在循环赛里获胜；以及从还原的奖励里去掉长度项之后的同一场循环赛，*控制长度*（length-controlled）的排行榜做的就是这件事（Dubois 等 2024，arXiv:2404.04475）。


# %% id="experiment"
def draw(length_bias):
    found, width = recover(rate(train_raw, (taste_style, taste_length + length_bias), seed + 7))
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
    left.errorbar([0, 1], found, yerr=width, fmt="o", capsize=4, color="#4c956c", label="recovered")
    left.plot([0, 1], taste, "x", color="#d55e00", label="planted, without the bias")
    left.set(xlim=(-0.5, 1.5), title="Which taste do the choices show?")
    left.set_xticks([0, 1], ["style", "ten words"])
    left.legend(fontsize=8)
    answers = [write(topics[0], *kind) for kind in KINDS]
    for shift, title, chosen_taste in ((-0.2, "as recovered", found), (0.2, "length taken out", (found[0], 0.0))):
        scores = torch.tensor([reward(answer, chosen_taste) for answer in answers])
        wins = torch.sigmoid(scores[:, None] - scores).mean(1)
        places, colour = [place + shift for place in range(len(KINDS))], "#0072b2" if shift < 0 else "#e69f00"
        right.bar(places, 100 * wins, width=0.38, color=colour, label=title)
    names = [f"{'styled' if styled else 'plain'}\n{sentences}" for styled, sentences in KINDS]
    right.set(ylim=(0, 125), ylabel="win rate, %", title="Who wins, by style and sentences?")
    right.set_xticks(range(len(KINDS)), names)
    right.legend(fontsize=8)
    plt.show()


experiment.show(draw, length_bias=widgets.FloatSlider(-2.0, min=-5.0, max=5.0, step=0.5))

# %% [markdown] id="exercise-probability-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 10`
# checks your saved copy of the whole lesson.
#
# **1.** Write the probability that answer a is preferred to answer b, given their rewards (two numbers). It must stay
# finite for rewards of 1,000 as well.

# %% [markdown] id="exercise-probability-why" lang="zh" of="97794711"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 10` 检查你保存的整课练习。
#
# **1.** 给定两个回答的奖励（两个数），写出回答 a 比回答 b 更受偏好的概率。奖励达到 1,000 时结果也必须是有限的。

# %% id="exercise-probability" tags=["exercise"]


def preference_probability(reward_a, reward_b):
    return ...  # your code


checks.check_preference_probability(preference_probability)

# %% [markdown] id="exercise-probability-solution"
# <details><summary>Solution</summary>
#
# ```python
# def preference_probability(reward_a, reward_b):
#     return (1 + math.tanh((reward_a - reward_b) / 2)) / 2
# ```
#
# </details>

# %% [markdown] id="exercise-probability-solution" lang="zh" of="c9717386"
# <details><summary>参考答案</summary>
#
# ```python
# def preference_probability(reward_a, reward_b):
#     return (1 + math.tanh((reward_a - reward_b) / 2)) / 2
# ```
#
# </details>

# %% [markdown] id="exercise-margin-why"
# **2.** By how much must one reward exceed the other for a preference probability of 90%?

# %% [markdown] id="exercise-margin-why" lang="zh" of="515d4e0f"
# **2.** 一个奖励要比另一个高多少，偏好概率才是 90%？

# %% id="exercise-margin" tags=["exercise"]
margin = ...  # your answer

checks.check_reward_margin(margin)

# %% [markdown] id="exercise-margin-solution"
# <details><summary>Solution</summary>
#
# ```python
# margin = math.log(0.9 / 0.1)
# ```
#
# </details>

# %% [markdown] id="exercise-margin-solution" lang="zh" of="c5299d51"
# <details><summary>参考答案</summary>
#
# ```python
# margin = math.log(0.9 / 0.1)
# ```
#
# </details>

# %% [markdown] id="exercise-loss-why"
# **3.** Write the Bradley-Terry loss of a batch: `chosen` and `rejected` are tensors of rewards, one pair per position.
# Return the mean; it must stay finite for rewards of 1,000.

# %% [markdown] id="exercise-loss-why" lang="zh" of="fbb76fac"
# **3.** 写出一个批次的 Bradley-Terry 损失：`chosen` 和 `rejected` 是奖励的张量，每个位置一个偏好对。返回平均值；奖励达到 1,000 时也必须有限。

# %% id="exercise-loss" tags=["exercise"]


def reward_loss(chosen, rejected):
    return ...  # your code


checks.check_reward_loss(reward_loss)

# %% [markdown] id="exercise-loss-solution"
# <details><summary>Solution</summary>
#
# ```python
# def reward_loss(chosen, rejected):
#     return -torch.nn.functional.logsigmoid(chosen - rejected).mean()
# ```
#
# </details>

# %% [markdown] id="exercise-loss-solution" lang="zh" of="c66f4233"
# <details><summary>参考答案</summary>
#
# ```python
# def reward_loss(chosen, rejected):
#     return -torch.nn.functional.logsigmoid(chosen - rejected).mean()
# ```
#
# </details>

# %% [markdown] id="exercise-last-why"
# **4.** A reward model has one score per token; the answer's reward is the score of its last token. `scores` and
# `attention_mask` have shape (answers, tokens), padded on the right. Return one reward per answer.

# %% [markdown] id="exercise-last-why" lang="zh" of="fd428701"
# **4.** 奖励模型给每个 token 一个分数，回答的奖励是最后一个 token 的分数。`scores` 和 `attention_mask` 形状为（回答数, token 数），右侧填充。返回每个回答的奖励。

# %% id="exercise-last" tags=["exercise"]


def last_token_rewards(scores, attention_mask):
    return ...  # your code


checks.check_last_token_rewards(last_token_rewards)

# %% [markdown] id="exercise-last-solution"
# <details><summary>Solution</summary>
#
# ```python
# def last_token_rewards(scores, attention_mask):
#     last = attention_mask.sum(dim=1) - 1
#     return scores[torch.arange(len(scores)), last]
# ```
#
# </details>

# %% [markdown] id="exercise-last-solution" lang="zh" of="7bbf11a2"
# <details><summary>参考答案</summary>
#
# ```python
# def last_token_rewards(scores, attention_mask):
#     last = attention_mask.sum(dim=1) - 1
#     return scores[torch.arange(len(scores)), last]
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
full_size = PROFILE != "smoke"
anything = (0.0, 1.0)  # two steps promise nothing
bands = {
    "bt_loss_max_abs_diff": (0.0, 1e-5),
    "reward_accuracy": (ceiling - 0.12, 1.0) if full_size else anything,
    "agrees_with_taste": (0.8, 1.0) if full_size else anything,
    "calibration_error": (0.0, 0.15) if full_size else anything,
    "probe_biased": (0.0, 0.4) if full_size else anything,
    "probe_fixed": (0.7, 1.0) if full_size else anything,
}
outcomes = {
    "reward_accuracy": reward_accuracy,
    "accuracy_before": accuracy_before,
    "ceiling": ceiling,
    "taste_inside": sum(inside),
    "agrees_with_taste": agrees,
    "calibration_error": calibration_error,
    "probability_error": probability_error,
    "rlaif_agrees": shares["model, asked"],
    "probe_biased": probe_biased,
    "probe_fixed": probe_fixed,
    "ordinary_fixed": ordinary["fixed"],
    "bt_loss_max_abs_diff": bt_loss_max_abs_diff,
    "train_seconds": train_seconds,
}
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/10_reward_model/adapter`, a reward model: lesson 12 asks it for a second opinion, and
# `reward_model:` in a PPO or GRPO recipe takes it.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; bigger models have their own, smaller learning rates.
#
# **Next:** a reward is made to be maximized: [11 · PPO and GRPO](11_ppo_grpo.ipynb). Or skip it altogether: [12 ·
# DPO](12_dpo.ipynb) learns from the pairs directly.
# %% [markdown] id="next" lang="zh" of="8f73a780"
# **你得到的成果：** `runs/10_reward_model/adapter`，一个奖励模型：第 12 课会请它再评一次，PPO 或 GRPO 配方里的 `reward_model:` 也可以用它。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；更大的模型有各自的、更小的学习率。
#
# **下一课：** 奖励就是用来最大化的：[11 · PPO 与 GRPO](11_ppo_grpo.ipynb)。或者干脆跳过奖励：[12 · DPO](12_dpo.ipynb) 直接从偏好对中学习。
