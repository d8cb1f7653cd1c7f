# %% [markdown] id="title"
# # 10 · A reward model: taste as a number
#
# "I like this answer better" is easy to say and hard to write as a program. A reward model learns it from pairs: two
# answers to one question, one of them chosen. Here you rate pairs yourself, build the loss in one line, prove it equal to
# the library's, train a judge that agrees with held-out ratings, and then catch a judge that fell for length.
#
# | you will have | measured as |
# |---|---|
# | the Bradley-Terry loss by hand | largest difference to TRL's, same batch |
# | a reward model | held-out pairs ranked as the raters did |
# | a probability you can trust, or not | calibration |
# | a judge fooled by length, and its cure | a probe: style against length |
#
# **Cost:** about 2 minutes and 4 GB on two CPU cores, 2 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="4356ee37"
# # 10 · 奖励模型：把口味变成数字
#
# “我更喜欢这个回答”说起来容易，写成程序却难。奖励模型从成对的回答中学会它：同一个问题的两个回答，其中一个被选中。在这里，你亲自给几对回答打分，用一行写出损失，证明它与库的相等，训练出一个与留出评分一致的裁判，然后抓住一个只看长度的裁判。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 Bradley-Terry 损失 | 同一批数据上与 TRL 的最大差值 |
# | 一个奖励模型 | 留出的成对回答中，排序与评分者一致的比例 |
# | 一个可信或不可信的概率 | 校准 |
# | 一个被长度骗了的裁判，以及治法 | 探针：风格对长度 |
#
# **耗时与内存：** 两个 CPU 核心上约 2 分钟、4 GB 内存，T4 上约 2 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# On Colab the next cell installs the course; everywhere else it only steps up to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="91d5b1e4"
# ## 准备
# 在 Colab 上，下一格会安装课程；在其他地方它只是进入课程文件夹。

# %% id="setup"
import os
import subprocess
import sys

FTLAB_REPO = ""  # Colab only: the git address this notebook was opened from
if "google.colab" in sys.modules and not os.path.isdir("ftlab"):
    subprocess.run(["git", "clone", "--depth=1", FTLAB_REPO, "ftlab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "./ftlab[course,gpu]"], check=True)
    os.chdir("ftlab")
while not os.path.isdir("data") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")

# %% id="imports"
import dataclasses
import math
import random
import time

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, load_dataset
from IPython.display import display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from ftlab import checks, device, evaluate, models
from ftlab.apps import course
from ftlab.apps.board import label_panel

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
i_rate = False  # True: you rate the first pairs; False: a rule does, as in a headless run
r = 8  # rank of the adapter
learning_rate = 5e-4
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 8  # pairs per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, steps of a side experiment, held-out pairs
    "smoke": ("smollm2-135m", 2, 1, 6),
    "cpu": ("smollm2-135m", 16, 12, 63),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 30, 20, 63),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 30, 20, 63),
}
default_model, default_steps, side_steps, pair_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% [markdown] id="pairs-why"
# ## Pairs
# A question, the answer that was *chosen*, the one that was *rejected*. Both are right. The raters of this set like an
# answer that opens with the gist and says so. Only quick questions they want answered plainly.

# %% [markdown] id="pairs-why" lang="zh" of="a5883ff1"
# ## 成对的回答
# 一个问题，*被选中*（chosen）的回答，以及*被拒绝*（rejected）的回答。两个都正确。这份数据的评分者喜欢先说要点、并且点明“简而言之”的回答；只有能一语答完的问题，他们希望直接回答。

# %% id="pairs"
pairs = list(load_dataset("json", data_files="data/preference_en.jsonl", split="train"))
held_out = list(load_dataset("json", data_files="data/preference_en_eval.jsonl", split="train"))[:pair_count]
for key in ("instruction", "chosen", "rejected"):
    print(f"{key:<12} {pairs[0][key]}")

# %% [markdown] id="length-why"
# A careful set leaves no shortcut. If the chosen answer were always the longer one, nobody could say whether the raters
# liked the gist or the length. **Predict before you run:** in what share of the pairs is the chosen answer shorter?

# %% [markdown] id="length-why" lang="zh" of="adc88945"
# 用心做的数据不留捷径。如果被选中的总是更长的那个，就没人说得清评分者喜欢的是要点还是长度。**先预测，再运行：** 被选中的回答在多大比例的偏好对里是较短的那个？

# %% id="length"
shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in pairs) / len(pairs)
print(f"the chosen answer is the shorter one in {shorter:.0%} of {len(pairs)} pairs")

# %% [markdown] id="rate-why"
# ## Your turn to rate
# With `i_rate = True` the next cell shows eight pairs: press a button, or type 1, 2, or 0 for neither. Each pick is
# written at once, as a registered data set. Without you, a rule picks: a program that checks the opening. A reward that a
# program can check is called *verifiable*. If another *model* is asked to judge in place of people, that is RLAIF.


# %% [markdown] id="rate-why" lang="zh" of="d989098b"
# ## 轮到你打分
# 设 `i_rate = True`，下一格会显示八对回答：按按钮，或输入 1、2，都不选就输入 0。每次选择立刻写入文件，成为一份已登记的数据集。你不在时由一条规则来选，也就是一个检查开头的程序。程序能检查的奖励叫*可验证奖励*（verifiable reward）；请另一个*模型*代替人来评判，才叫 RLAIF。


# %% id="rater"
def has_style(answer):
    return answer.startswith("In short")


def rule(question, left, right):
    return 1 if has_style(right) and not has_style(left) else 0


# %% id="rate"
pile = label_panel.Labels(
    [(x["instruction"], x["chosen"], x["rejected"]) for x in pairs[:8]], "mine", "runs/10_reward_model"
)
if i_rate:
    display(label_panel.panel(pile))
else:
    print(pile.rate(rule), "preferences in", pile.path)

# %% [markdown] id="mine-why"
# Your rows take the place of the first eight; the file stays for the next time. TRL wants each side as a conversation.


# %% [markdown] id="mine-why" lang="zh" of="c099655a"
# 你的评分会替换前八行；文件会留到下次。TRL 要求每一边都是一段对话。


# %% id="dataset"
def conversation(row, side):
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row[side]}]


def to_dataset(rows):
    return Dataset.from_list([{side: conversation(row, side) for side in ("chosen", "rejected")} for row in rows])


mine = []
if os.path.exists("runs/10_reward_model/mine.jsonl"):
    mine = list(load_dataset("json", data_files="runs/10_reward_model/mine.jsonl", split="train"))
train_pairs = mine + pairs[8:]
print(len(mine), "of", len(train_pairs), "pairs are yours")

# %% [markdown] id="idea-why"
# ## From two rewards to one probability
# RLHF works with four models: the *policy* that writes answers, the frozen *reference* that it is compared with, the *reward
# model* that scores the answers, and the *value model* that predicts the score on the way. This lesson trains the third.
#
# A reward model reads a whole answer and gives one number. Bradley and Terry (1952) say what two such numbers mean: the
# better one wins with probability `sigmoid(difference)`. Only the difference counts.

# %% [markdown] id="idea-why" lang="zh" of="543cdbb3"
# ## 从两个奖励到一个概率
# RLHF 用到四个模型：写回答的*策略模型*，用来对照的、冻结的*参考模型*，给回答打分的*奖励模型*，以及中途预测得分的*价值模型*。本课训练的是第三个。
#
# 奖励模型读完整个回答，给出一个数。Bradley 与 Terry（1952）说明了两个这样的数意味着什么：更好的那个以 `sigmoid(差值)` 的概率获胜。只有差值重要。

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
on_gpu = torch.cuda.is_available()
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def reward_model(dtype=dtype):
    """Return a fresh reward model: the embedded weights, a new head, a new adapter."""
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(
        model_path, num_labels=1, dtype=dtype, device_map="cuda" if on_gpu else "cpu"
    )
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
    logging_steps=1,
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
# ### 与库相等
# 一批数据，32 位浮点数，训练器自己的损失对我们的那一行。

# %% id="parity"
exact = RewardTrainer(reward_model("float32"), training_args, train_dataset=to_dataset(train_pairs[:16]))
batch = exact._prepare_inputs(next(iter(exact.get_train_dataloader())))
with torch.no_grad():
    theirs = exact.compute_loss(exact.model.eval(), dict(batch)).item()
    chosen, rejected = exact.model(**batch).logits.squeeze(-1).chunk(2)
bt_loss_max_abs_diff = abs(theirs - bradley_terry_loss(chosen, rejected).item())
print(f"TRL {theirs:.6f}, by hand {bradley_terry_loss(chosen, rejected):.6f}, difference {bt_loss_max_abs_diff:.1e}")
assert bt_loss_max_abs_diff <= 1e-5

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# An untrained head knows nothing about taste. How often does it rank a held-out pair as the raters did? (The questions
# of the held-out pairs do not occur in training.)


# %% [markdown] id="baseline-why" lang="zh" of="135bf52f"
# ## 先测基线
# 没训练过的头对口味一无所知。它给留出的偏好对排序，有多少次与评分者一致？（留出的问题都不出现在训练里。）


# %% id="rewards"
@torch.no_grad()
def rewards(model, questions, answers):
    """Return one reward per answer, as a list."""
    model.eval()
    chats = [conversation({"instruction": q, "answer": a}, "answer") for q, a in zip(questions, answers, strict=True)]
    scores = []
    for start in range(0, len(chats), 32):
        texts = tokenizer.apply_chat_template(chats[start : start + 32], tokenize=False)
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
        scores += model(**batch).logits.squeeze(-1).float().tolist()
    return scores


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

# %% [markdown] id="train-why"
# An untrained head isn't a coin, so don't expect 50%. It is one fixed random direction in the model's states, and the pairs
# differ in the same few ways again and again: the opening, and one of three patterns of length. Whatever the direction
# happens to favour, it favours in all pairs of a pattern alike. A score far from 50%, on either side, says nothing about
# knowledge: another `seed` gives another one.
#
# ## Train


# %% [markdown] id="train-why" lang="zh" of="8614ad4a"
# 没训练过的头并不是硬币，所以别指望正好 50%。它是模型隐藏空间里一个固定的随机方向，而这些偏好对总在同样几处不同：开头，以及三种长度组合。这个方向碰巧偏向哪边，在同一种组合的所有偏好对里就都偏向哪边。所以远离 50% 的分数（无论哪一边）并不说明它懂什么：换一个 `seed` 就会换一个分数。
#
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
print(f"{train_seconds:.0f} seconds")

# %% id="curves"
steps = [row for row in log if "accuracy" in row]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([row["loss"] for row in steps])
left.axhline(math.log(2), color="grey", linestyle=":")
left.set(xlabel="optimizer step", ylabel="Bradley-Terry loss", title="dotted: a coin")
right.plot([row["accuracy"] for row in steps], label="accuracy")
right.plot([row["margin"] for row in steps], label="margin")
right.set(xlabel="optimizer step", title="on the batch, while training")
right.legend()
plt.show()

# %% [markdown] id="after-why"
# ## Does it agree with held-out raters?
# A share of pairs is a sample: its interval says what else it could be. The interval counts every pair; three pairs share a
# topic, so it is rather too narrow. And the task is easy: these raters decide by the opening alone, which a program checks
# without a mistake.

# %% [markdown] id="after-why" lang="zh" of="3d77c67b"
# ## 它与留出的评分者一致吗？
# 这些偏好对得出的比例只是一个样本：区间说明它还可能是多少。区间把每一对都算作独立样本，而每三对共用一个主题，所以它偏窄。而且这道题很容易：这些评分者只凭开头决定，程序检查开头不会出错。

# %% id="after"
margins_after = margins(model, held_out)
reward_accuracy = accuracy(margins_after)
low, high = evaluate.interval(reward_accuracy, len(held_out))
print(f"held-out pairs: {accuracy_before:.0%} -> {reward_accuracy:.0%} (95% interval {low:.0%} to {high:.0%})")

# %% [markdown] id="calibration-why"
# ## When it says 80%, is it 80%?
# `sigmoid(margin)` claims a probability. To check it, show each pair in a random order, sort the claims into bins, and
# count how often the first answer was the chosen one. On the diagonal, claims can be taken at their word.


# %% [markdown] id="calibration-why" lang="zh" of="48578edc"
# ## 它说 80%，真是 80% 吗？
# `sigmoid(差值)` 声称的是一个概率。检验办法：把每一对按随机次序展示，把这些概率分进几个区间，数一数第一个回答有多少次是被选中的。落在对角线上，声称的概率就可以照字面相信。


# %% id="calibration"
def calibration(differences, bins=5):
    """Return (claimed, observed, count) per bin, the pairs shown in a random order."""
    chance = random.Random(seed)
    signs = [chance.choice((1, -1)) for _ in differences]
    claims = [1 / (1 + math.exp(-sign * d)) for sign, d in zip(signs, differences, strict=True)]
    rows = []
    for number in range(bins):
        inside = [i for i, claim in enumerate(claims) if number == min(int(claim * bins), bins - 1)]
        if inside:
            claimed = sum(claims[i] for i in inside) / len(inside)
            rows.append((claimed, sum(signs[i] == 1 for i in inside) / len(inside), len(inside)))
    return rows


# %% id="calibration-plot"
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot([0, 1], [0, 1], ":", color="grey")
for name, differences, mark in (("before", margins_before, "o"), ("after", margins_after, "s")):
    rows = calibration(differences)
    ax.scatter(
        *list(zip(*rows, strict=True))[:2], s=[20 + 6 * row[2] for row in rows], marker=mark, label=name, alpha=0.7
    )
    error = sum(count * abs(claimed - seen) for claimed, seen, count in rows) / len(differences)
    print(f"{name}: mean distance from the diagonal {error:.2f}")
ax.set(xlabel="claimed probability", ylabel="share that was chosen")
ax.legend(loc="upper left")
plt.show()

# %% [markdown] id="calibration-read"
# An untrained judge claims about one half everywhere, which is honest and useless. The trained one is sure, and right to
# be so on these raters, who never waver. That is a weak test of calibration: with no disagreement among the raters, all
# claims lie at the two ends and the middle stays empty. With raters who disagree, a calibrated judge would stay nearer to
# the middle.

# %% [markdown] id="calibration-read" lang="zh" of="a78fe627"
# 未训练的裁判处处都说大约一半，诚实而无用。训练后的裁判很确定，而对这些从不动摇的评分者来说，它确定得有道理。但这个校准检验很弱：评分者之间没有分歧，声称的概率都落在两端，中间是空的。若评分者意见不一，校准良好的裁判会更靠近中间。

# %% [markdown] id="break-why"
# ## What goes wrong: a judge that measures length
# Say the raters were tired. The answers they chose were always the shorter ones, and where both answers had the same
# style they just took the shorter. Nobody planned it, and the set does not tell.


# %% [markdown] id="break-why" lang="zh" of="fcbd2185"
# ## 故意出错：一个量长度的裁判
# 假设评分者累了。他们选的总是较短的回答；两个回答风格相同时，就直接选短的。没人有意为之，数据里也看不出来。


# %% id="biased"
def first_sentence(text):
    return text.split(". ")[0].rstrip(".") + "."


def tired(rows):
    """Keep pairs whose chosen side is shorter, and add pairs of plain answers where the shorter one was taken."""
    short = [row for row in rows if len(row["chosen"]) < len(row["rejected"])]
    plain = [row | {"chosen": first_sentence(row["rejected"])} for row in rows if ". " in row["rejected"]]
    return short + plain[: len(short)]


biased_pairs = tired(train_pairs)
biased_model, _ = train(biased_pairs, side_steps)
looks_fine = accuracy(margins(biased_model, tired(held_out)))
print(f"held-out pairs from the same tired raters: {looks_fine:.0%}")

# %% [markdown] id="probe-why"
# On pairs collected the same way it looks good: the flaw is in the raters and in the test alike. A *probe* is a set made
# on purpose, where the two explanations disagree: the styled answer is the **longer** one.
#
# **Predict before you run:** which judge will fail the probe?


# %% [markdown] id="probe-why" lang="zh" of="10e50c38"
# 在同样方式收集的偏好对上，它看起来很好：毛病同时藏在评分者和测试里。*探针*是特意做的一组数据，让两种解释彼此矛盾：有风格的回答是**更长**的那个。
#
# **先预测，再运行：** 哪个裁判会通不过探针？


# %% id="probe"
probe = [row for row in held_out if len(row["chosen"]) > len(row["rejected"]) + 30]
probe = [row | {"rejected": first_sentence(row["rejected"])} for row in probe]
probe_careful, probe_biased = accuracy(margins(model, probe)), accuracy(margins(biased_model, probe))
print(probe[0]["chosen"], probe[0]["rejected"], sep="\n")
print(f"{len(probe)} probes passed: careful raters {probe_careful:.0%}, tired raters {probe_biased:.0%}")

# %% [markdown] id="mend-why"
# ### The fix is in the data
# The output answers your prediction. Now add pairs in which the longer answer is the chosen one, and add each pair of plain
# answers a second time with its sides swapped: the two copies contradict each other, so length stops being a reason, at the
# price of pairs that teach nothing else. Same model, same loss, same steps. The probe doesn't say what this does to
# ordinary pairs; `accuracy(margins(fixed_model, held_out))` does.

# %% [markdown] id="mend-why" lang="zh" of="13e2148e"
# ### 办法在数据里
# 输出回答了你的预测。现在加入“较长的回答被选中”的偏好对，再把每一对普通回答交换两边后重复一次：两份互相矛盾，长度就不再是理由，代价是这些偏好对也教不了别的。模型、损失、步数都不变。探针没有说明普通的偏好对会怎样，`accuracy(margins(fixed_model, held_out))` 能告诉你。

# %% id="mend"
longer = [row for row in train_pairs if len(row["chosen"]) > len(row["rejected"])]
plain = [row for row in biased_pairs if not has_style(row["chosen"])]
turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in plain]
fixed_model, _ = train(biased_pairs + longer + turned, side_steps)
probe_fixed = accuracy(margins(fixed_model, probe))
print(f"probes passed: tired raters {probe_biased:.0%}, fixed {probe_fixed:.0%}")

# %% id="probe-plot"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
shown = {
    "tired raters": margins(biased_model, probe),
    "fixed": margins(fixed_model, probe),
    "careful": margins(model, probe),
}
ax.boxplot(list(shown.values()), tick_labels=list(shown))
ax.axhline(0, color="grey", linestyle=":")
ax.set(ylabel="reward: long with style\nminus short without")
plt.show()

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
assert steps[-1]["loss"] < steps[0]["loss"] or not full_size
assert bt_loss_max_abs_diff <= 1e-5
assert reward_accuracy >= 0.85 or not full_size
assert probe_biased < 0.5 < 0.85 <= probe_fixed or not full_size
model.save_pretrained("runs/10_reward_model/adapter")
outcomes = {
    "reward_accuracy": reward_accuracy,
    "accuracy_before": accuracy_before,
    "probe_biased": probe_biased,
    "probe_fixed": probe_fixed,
    "bt_loss_max_abs_diff": bt_loss_max_abs_diff,
    "train_seconds": train_seconds,
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; bigger judges want `learning_rate = 1e-4` and more pairs.
#
# **Next:** use the reward to train: [12 · DPO](12_dpo.ipynb) does it without a reward model at all.
# %% [markdown] id="next" lang="zh" of="c8559956"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；更大的裁判适合 `learning_rate = 1e-4` 和更多偏好对。
#
# **下一步：** 用奖励来训练：[12 · DPO](12_dpo.ipynb) 完全不需要奖励模型就能做到。
