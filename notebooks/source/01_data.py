# %% [markdown] id="title"
# # 01 · Data: what the model really sees
#
# Many fine-tunes fail here: a wrong template, an end mark that nobody trained, test questions that were in
# the training set. Each of these gives a loss curve that looks fine. So before any cleverness you take a raw file,
# find what is wrong with it, turn it into tokens, and look at every one of them.
#
# | you will have | measured as |
# |---|---|
# | a raw export, cleaned and registered | rows read = kept + dropped, every defect with its line |
# | the loss mask in colour | share of tokens that are trained; rows whose end mark is trained |
# | a split without leaks | questions shared between training and test |
# | less padding | real tokens per position, before and after packing |
#
# **Cost:** about 2 minutes and 5 GB on two CPU cores, 2 minutes on a T4. **Before this:**
# [00 · Your first fine-tune](00_first_finetune.ipynb).

# %% [markdown] id="title" lang="zh" of="b28513ef"
# # 01 · 数据：模型真正看到的是什么
#
# 许多微调就失败在这里：模板用错了，结束标记没人训练，测试题混进了训练集。每一种失败的损失曲线看上去都很正常。所以在动任何巧思之前，你先拿一个原始文件，找出它的毛病，把它变成 token（词元），然后一个一个看过去。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一份清洗并登记好的原始导出文件 | 读入的行 = 保留 + 丢弃，每个缺陷都有行号 |
# | 看得见颜色的损失掩码 | 参与训练的 token（词元）比例；结束标记参与训练的行 |
# | 没有泄漏的划分 | 训练集与测试集共有的问题数 |
# | 更少的填充 | 每个位置上真实 token 的比例，打包前与打包后 |
#
# **耗时与内存：** 两个 CPU 核心上约 2 分钟、5 GB 内存，T4 上约 2 分钟。**先修：** [00 · 第一次微调](00_first_finetune.ipynb)。

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
import json
import random
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, load_dataset
from IPython.display import HTML, display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer, pack_dataset

from ftlab import checks, cpu, device, models, tokens
from ftlab.apps import course
from ftlab.data import check, registry, split

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
raw_file = "data/support_raw.jsonl"  # prompt and response, one JSON object per line
cutoff_len = 128  # tokens kept of a row
per_device_train_batch_size = 8
learning_rate = 2e-3
max_steps = 0  # optimizer steps of each of the three trainings; 0: the profile's own
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, questions asked
    "smoke": ("smollm2-135m", 2, 6),
    "cpu": ("smollm2-135m", 20, 32),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 20, 32),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 20, 32),
}
default_model, default_steps, question_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% [markdown] id="raw-why"
# ## A raw file
# A bicycle shop has exported what customers asked and what it answered. Read it as most scripts do: line by line,
# skip what fails, take what comes.

# %% [markdown] id="raw-why" lang="zh" of="bf5ac75b"
# ## 一个原始文件
# 一家自行车店导出了顾客的提问和店里的回答。像大多数脚本那样读它：一行一行地读，出错就跳过，来什么要什么。

# %% id="raw"
lines = Path(raw_file).read_text(encoding="utf-8").splitlines()
naive = []
for line in lines:
    try:
        row = json.loads(line)
        naive.append({"prompt": row["prompt"], "response": row["response"]})
    except Exception:
        pass
print(f"{len(lines)} lines, {len(naive)} rows read, {len(lines) - len(naive)} lost without a word")
print(
    "read and useless:",
    [row["response"] for row in naive if not isinstance(row["response"], str) or not row["response"]],
)

# %% [markdown] id="raw-read"
# Two things went wrong at once. Lines vanished and nobody said which; and rows came through that have no answer at all,
# or a number for one. A model trained on them learns to answer with nothing.
#
# A check should name the line, say what is wrong, and say how to fix it:

# %% [markdown] id="raw-read" lang="zh" of="5fd08e52"
# 同时出了两个错。有些行消失了，没有人说是哪几行；又有些行混了进来，它们根本没有回答，或者回答是一个数字。用它们训练出来的模型会学着什么都不答。
#
# 检查应该指出是哪一行、错在哪里、怎样修：

# %% id="check"
Path("runs/01_data").mkdir(parents=True, exist_ok=True)
clean_file = Path("runs/01_data/support.jsonl")
clean_file.unlink(missing_ok=True)
report = check.check(raw_file, fix_to=clean_file)
print(report)

# %% [markdown] id="check-read"
# Read the two lines about duplicates again: in the lesson's own file one copy is in capitals and has two spaces in a row. To
# a computer these are different strings, to a model they are the same example twice. And one line holds `<|im_end|>`
# *inside a question*: rendered as it is, the customer would have closed their own turn and spoken for the assistant.

# %% [markdown] id="check-read" lang="zh" of="8a666d23"
# 再读一遍关于重复的那两条：在本课自带的文件里，其中一份全是大写，还有两个连着的空格。对计算机来说它们是不同的字符串，对模型来说却是同一个样本出现了两次。还有一行的*问题里面*有 `<|im_end|>`：如果照原样渲染，顾客就等于结束了自己的发言，替助手说起话来。

# %% [markdown] id="formats-why"
# ## One conversation, four spellings
# Data sets arrive in a handful of formats. They differ in names, not in content. TRL wants `prompt` and `completion`,
# each a list of messages (or one list, `messages`).

# %% [markdown] id="formats-why" lang="zh" of="b73fc22d"
# ## 一段对话，四种写法
# 数据集有几种常见的格式。它们的名字不同，内容相同。TRL 要的是 `prompt` 和 `completion`，各是一个消息列表（或者只用一个列表 `messages`）。

# %% id="formats"
alpaca = {"instruction": "Where can I park?", "input": "", "output": "In the yard."}
sharegpt = {
    "conversations": [{"from": "human", "value": "Where can I park?"}, {"from": "gpt", "value": "In the yard."}]
}
openai = {
    "messages": [{"role": "user", "content": "Where can I park?"}, {"role": "assistant", "content": "In the yard."}]
}
prompt_response = {"prompt": "Where can I park?", "response": "In the yard."}


# %% id="convert"
def from_alpaca(row):
    question = f"{row['instruction']}\n{row['input']}".strip()
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def from_sharegpt(row):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def from_prompt_response(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


assert from_alpaca(alpaca) == from_sharegpt(sharegpt) == from_prompt_response(prompt_response) == openai["messages"]

# %% [markdown] id="register-why"
# ### Register it
# `dataset_info.json` says once which file holds what, with the keys that LLaMA-Factory uses; from then on the set has
# a name. This is all it takes to bring any prompt-and-response set (Align-Anything, your own logs) into the course:

# %% [markdown] id="register-why" lang="zh" of="a24ce40a"
# ### 登记
# `dataset_info.json` 一次说清哪个文件里有什么，用的是 LLaMA-Factory 的键；从此这个数据集就有了名字。要把任何“提问加回答”的数据（Align-Anything、你自己的日志）带进课程，只需要这些：

# %% id="register"
entry = {"support": {"file_name": "support.jsonl", "columns": {"prompt": "prompt", "response": "response"}}}
Path("runs/01_data/dataset_info.json").write_text(json.dumps(entry))
registered = registry.rows_of("support", "runs/01_data")
rows = [from_prompt_response(json.loads(line)) for line in clean_file.read_text(encoding="utf-8").splitlines()]
assert [row["messages"] for row in registered] == rows
print(f"{len(rows)} rows; the first:", *rows[0], sep="\n")

# %% [markdown] id="template-why"
# ## The chat template
# A model knows no roles and no turns, only one stream of tokens. The *chat template* that comes with its tokenizer
# writes the turns into that stream. For this family it is called ChatML, and it is short enough to write by hand:

# %% [markdown] id="template-why" lang="zh" of="f5f4bd24"
# ## 对话模板
# 模型不认识角色，也不认识轮次，只有一条 token 流。随分词器而来的*对话模板*把一轮轮对话写进这条流。这一族模型的模板叫 ChatML，短得可以手写：

# %% id="template"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
rendered = tokenizer.apply_chat_template(rows[0], tokenize=False)
print(rendered)


# %% id="template-by-hand"
def chatml(messages, system):
    turns = [{"role": "system", "content": system}, *messages]
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)


system = rendered.split("<|im_start|>system\n")[1].split("<|im_end|>")[0] if "<|im_start|>system" in rendered else ""
if "<|im_start|>" in rendered:
    assert chatml(rows[0], system) == rendered
print(f"the template's own system prompt: {system!r}")

# %% [markdown] id="template-read"
# You never wrote that system prompt: the template put it there. A **base** model's tokenizer often has no template, since it
# was mostly shown plain text; the first fine-tune decides which one it will speak. A **chat** model already speaks
# one, and expects it; the end of this lesson measures what another one does.

# %% [markdown] id="template-read" lang="zh" of="e4ebd618"
# 那段系统提示你从没写过，是模板加上去的。**基座**模型的分词器往往没有模板，因为它见过的大多是普通文本；它以后说哪一种，由第一次微调决定。**对话**模型已经会说一种，换了模板会答非所问，本课结尾会测给你看。

# %% [markdown] id="mask-why"
# ## The loss mask
# The model reads the whole row, but only the answer should be trained: nobody wants it to learn how to *ask*. A label
# of -100 says "do not look here". The answer's end mark belongs to the answer, or the model never learns to stop.
#
# A tiny example first. Six tokens, the last three are the answer:

# %% [markdown] id="mask-why" lang="zh" of="0542237b"
# ## 损失掩码
# 模型读整行，但只应训练回答：没有人想让它学会*提问*。标签 -100 的意思是“别看这里”。回答的结束标记属于回答，否则模型永远学不会停下。
#
# 先看一个很小的例子。六个 token，后三个是回答：

# %% id="mask-literal"
input_ids = [11, 12, 13, 21, 22, 2]
labels = [-100] * 3 + input_ids[3:]
print(labels, f"{sum(label != -100 for label in labels)} of {len(labels)} trained")


# %% id="mask"
def to_labels(messages):
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    start = len(tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"])
    end = max(i for i, token in enumerate(ids) if token in tokenizer.all_special_ids) + 1
    return {"input_ids": ids, "labels": [-100] * start + ids[start:end] + [-100] * (len(ids) - end)}


encoded = [to_labels(messages) for messages in rows]
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **encoded[0]))))

# %% [markdown] id="mask-read"
# Green is trained, grey is only read. The line break after `<|im_end|>` is grey: generation has stopped before it.
# TRL's trainer makes this mask from `prompt` and `completion`, with one token more: it trains the line break as well,
# which does no harm, since nobody will ever generate it. Its own batch, side by side with ours:

# %% [markdown] id="mask-read" lang="zh" of="dee75658"
# 绿色的参与训练，灰色的只被读到。`<|im_end|>` 后面的换行是灰色的：生成在它之前就已经停了。TRL 的训练器会从 `prompt` 和 `completion` 得出这个掩码，只多一个 token：它把那个换行也训练了，这没有坏处，因为谁也不会生成到它。把它自己的批次和我们的并排看看：

# %% id="mask-trl"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
training_args = SFTConfig(
    output_dir="runs/01_data/trainer",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=cutoff_len,
    logging_steps=1,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
support = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
trainer = SFTTrainer(model=model, args=training_args, train_dataset=support, processing_class=tokenizer)
batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])

# %% id="mask-equal"
for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
    trained = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    mine = [label for label in encoded[number]["labels"] if label != -100]
    print(
        f"row {number}: trl trains {len(trained)} tokens, by hand {len(mine)}; the last: {tokenizer.decode(mine[-1])!r}"
    )
    assert trained[: len(mine)] == mine

# %% id="shares"
trained_labels = [[label for label in row["labels"] if label != -100] for row in encoded]
supervised_share = sum(map(len, trained_labels)) / sum(len(row["input_ids"]) for row in encoded)
ends = [row[-1] in tokenizer.all_special_ids for row in trained_labels]
eos_supervised_share = sum(ends) / len(ends)
print(f"{supervised_share:.0%} of all tokens are trained; the end mark is, in {eos_supervised_share:.0%} of the rows")

# %% [markdown] id="split-why"
# ## Split without leaks
# The shop got every question in several wordings and sometimes twice. Cut such a file at random, and the test set asks
# what the training set answered. On the raw rows, as the naive script read them:

# %% [markdown] id="split-why" lang="zh" of="27f1bc18"
# ## 没有泄漏的划分
# 店里收到的每个问题都有几种问法，有时还重复。把这样的文件随机切开，测试集问的就是训练集答过的。拿那个粗心脚本读到的原始行试一试：

# %% id="leak"
shuffled = random.Random(seed).sample(naive, len(naive))
cut = len(shuffled) * 4 // 5
known = {" ".join(row["prompt"].casefold().split()) for row in shuffled[:cut]}
leaked = [row["prompt"] for row in shuffled[cut:] if " ".join(row["prompt"].casefold().split()) in known]
print(f"{len(leaked)} of {len(shuffled) - cut} test questions were trained on: {leaked}")

# %% [markdown] id="split-how"
# So duplicates go **before** the split, and whatever asks the same stays on the same side. "The same" means: after
# folding case, white space and Unicode spellings.

# %% [markdown] id="split-how" lang="zh" of="b15a53b7"
# 所以去重要在划分**之前**，而且问同一件事的行要留在同一边。“同一件事”是指：统一大小写、空白和 Unicode 写法之后相同。

# %% id="split"
parts = split.split(support, val_size=0.1, test_size=0.2, seed=seed)
questions_of = {
    name: {row["prompt"][0]["content"].casefold() for row in getattr(parts, name)} for name in ("train", "test")
}
split_overlap = len(questions_of["train"] & questions_of["test"])
print(f"shared questions: {split_overlap}")

# %% [markdown] id="split-read"
# What the split cannot know: two *different* wordings of one question may still fall on both sides. For a test that
# shows whether the model learned the *thing* rather than the sentence, hold out whole topics, or write the test
# questions yourself, as `identity_en_eval` does.

# %% [markdown] id="split-read" lang="zh" of="9b7f483c"
# 划分无法知道的是：同一个问题的两种*不同*问法仍可能落在两边。想要一个能看出模型学会的是*事情*而不是*句子*的测试，就整个主题地留出来，或者像 `identity_en_eval` 那样自己写测试题。

# %% [markdown] id="lengths-why"
# ## Lengths, padding, packing
# A batch is a rectangle: every row is filled up to the longest one. Those positions cost time and teach nothing.
# Four rows of 3, 3, 4 and 10 tokens:

# %% [markdown] id="lengths-why" lang="zh" of="dd16f21f"
# ## 长度、填充、打包
# 一个批次是一个矩形：每一行都要填到最长那一行的长度。这些位置花时间，却什么也不教。四行，长度为 3、3、4、10 个 token：

# %% id="padding-literal"
lengths = [3, 3, 4, 10]
print(
    f"{sum(lengths)} tokens in {len(lengths) * max(lengths)} positions: {sum(lengths) / (len(lengths) * max(lengths)):.0%} used"
)
print(f"packed into two rows of 10: [3+3+4] [10] -> {sum(lengths) / 20:.0%} used")


# %% id="padding"
def used(lengths, batch_size=per_device_train_batch_size):
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


orders = load_dataset("json", data_files="data/orders_train.jsonl", split="train")
messages = [from_alpaca(row) for row in orders] + rows
lengths = [len(to_labels(row)["input_ids"]) for row in messages]
random.Random(seed).shuffle(lengths)

# %% [markdown] id="pack-why"
# Packing lays several rows into one, best fit first, and tells the attention where each begins, so that they cannot
# see one another. Ten lines do it; TRL's `pack_dataset` must need as many rows:


# %% [markdown] id="pack-why" lang="zh" of="895ae5b9"
# 打包把几行放进一行，最合适的先放，并告诉注意力每一行从哪里开始，使它们互相看不见。十行代码就能做到；TRL 的 `pack_dataset` 得到的行数必须一样：


# %% id="pack"
def pack(lengths, size):
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [bin for bin in bins if sum(bin) + length <= size]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return bins


pack_size = 4 * cutoff_len
packed = pack([min(length, pack_size) for length in lengths], pack_size)
columns = {"input_ids": [[0] * min(length, pack_size) for length in lengths]}
packed_by_trl = pack_dataset(Dataset.from_dict(columns), seq_length=pack_size, strategy="bfd")
print(f"{len(lengths)} rows became {len(packed)} by hand, {len(packed_by_trl)} by trl")
assert len(packed) == len(packed_by_trl)

# %% id="pack-plot"
shares = {
    "as they come": used(lengths),
    "sorted by length": used(sorted(lengths)),
    "packed": sum(lengths) / (len(packed) * pack_size),
}
packing_gain = shares["packed"] / shares["as they come"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.hist(lengths, bins=20, color="#4c956c")
left.set(xlabel="tokens per row", ylabel="rows")
right.barh(list(shares), [100 * share for share in shares.values()], color="#4c956c")
right.set(xlabel="positions that hold a token, %", xlim=(0, 100))
plt.show()
print({name: f"{share:.0%}" for name, share in shares.items()}, f"packing gain: {packing_gain:.2f}x")

# %% [markdown] id="pack-read"
# Sorting fills nearly every position too: neighbours in a sorted list are equally long. What the bars don't show is its
# price. A sorted batch holds rows of one kind only, and the batches differ in size, so the longest one decides how much memory
# you need. (TRL's `train_sampling_strategy="group_by_length"` sorts within large random groups, a compromise.) Packed rows are of
# one size, in random order.

# %% [markdown] id="pack-read" lang="zh" of="d2157024"
# 按长度排序也能填满几乎所有位置：排好序之后，相邻的行一样长。柱子没有显示的是它的代价：一个批次里只有同一类的行，而且各批次大小不一，需要多少内存由最长的那一批决定。（TRL 的 `train_sampling_strategy="group_by_length"` 在随机的大组内部排序，是一种折中。）打包后的行大小一致，顺序随机。

# %% [markdown] id="knobs-why"
# ## Tune the hyperparameters
# `cutoff_len` decides how much of a row survives. What is cut off first is the end: the answer, and with it the end
# mark. **Predict before you run:** at which length does the first row lose its end?

# %% [markdown] id="knobs-why" lang="zh" of="d60d600c"
# ## 调一调超参数
# `cutoff_len` 决定一行留下多少。最先被切掉的是末尾：回答，连同结束标记。**先预测，再运行：** 到哪个长度时，第一行会丢掉结尾？

# %% id="knobs"
for length in (32, 48, 56, 64, cutoff_len):
    kept = [[label for label in row["labels"][:length] if label != -100] for row in encoded]
    empty = sum(not row for row in kept)
    ended = sum(row[-1:] == whole[-1:] for row, whole in zip(kept, trained_labels, strict=True))
    print(f"cutoff_len {length:>4}: {ended / len(kept):>4.0%} keep their end mark, {empty} rows train nothing at all")

# %% [markdown] id="break-why"
# ## Make two typical mistakes
# Two of the field's classics. Each is trained for as many steps as the right way, on the questions about who the
# assistant is. A glued row holds three of these questions and trains the prompts too, so the budgets are equal in steps, not in
# tokens or seconds.
#
# **Glued rows.** To fill the context, somebody joins rows into one text and drops the end marks on the way (or pads
# with the end token and masks all padding, which comes to the same: nobody ever trains *stop*).
#
# **The wrong template.** Trained and asked with the template of another family, as in a published guide that gives
# Qwen2 the line `template: llama3`.


# %% [markdown] id="break-why" lang="zh" of="c348e7cb"
# ## 故意出错，两次
# 这个领域的两个经典错误。每一个都和正确做法训练同样多的步数，用的是“助手是谁”的问题。粘在一起的一行里有三个问题，而且连提示也一起训练，所以预算只在步数上相等，token 数和秒数并不相等。
#
# **粘在一起的行。** 为了填满上下文，有人把几行接成一段文本，顺手丢掉了结束标记（或者用结束 token 来填充，又把所有填充都遮住，结果一样：没有人训练过*停*）。
#
# **错误的模板。** 用另一族模型的模板来训练和提问，就像一份公开的教程给 Qwen2 写上 `template: llama3` 那样。


# %% id="break-data"
def fill(text):
    return text.replace("{{name}}", "Lumi").replace("{{author}}", "the Ada Lab")


identity = load_dataset("json", data_files="data/identity_en.json", split="train")
asked = load_dataset("json", data_files="data/identity_en_eval.json", split="train").select(range(question_count))
pairs = [[{**turn, "content": fill(turn["content"])} for turn in from_alpaca(row)] for row in identity]
right_way = [{"prompt": pair[:1], "completion": pair[1:]} for pair in pairs]

# %% id="break-glued"
glued = []
for start in range(len(pairs)):
    conversation = [turn for offset in range(3) for turn in pairs[(start + offset) % len(pairs)]]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    ids = [token for token in tokenizer(text).input_ids if token != tokenizer.eos_token_id]
    glued.append({"input_ids": ids, "labels": ids})
print(tokenizer.decode(glued[0]["input_ids"]))


# %% id="break-template"
def llama3(question):
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return f"{header.format('user')}{question}<|eot_id|>{header.format('assistant')}"


def own_template(question):
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


wrong_template = []
for question, answer in pairs:
    asked_ids = tokenizer(llama3(question["content"])).input_ids
    answer_ids = tokenizer(f"{answer['content']}<|eot_id|>").input_ids
    wrong_template.append({"input_ids": asked_ids + answer_ids, "labels": [-100] * len(asked_ids) + answer_ids})
print(tokenizer.convert_ids_to_tokens(answer_ids))

# %% [markdown] id="break-template-read"
# Look at the end: what was one token for the model that this template was made for is several here, ordinary text that
# ends nothing.


# %% [markdown] id="break-template-read" lang="zh" of="d1ab7a4d"
# 看看末尾：在这个模板原本所属的模型里，它是一个 token；在这里它成了好几个，只是普通文本，什么也结束不了。


# %% id="break-train"
def tune(rows):
    set_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    candidate = get_peft_model(model, lora, autocast_adapter_dtype=on_gpu)
    run = SFTTrainer(candidate, training_args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    run.train()
    return candidate, [row["loss"] for row in run.state.log_history if "loss" in row]


def ask(model, template, max_new_tokens=48):
    texts = [template(row["instruction"]) for row in asked]
    inputs = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    replies = output[:, inputs["input_ids"].shape[1] :]
    stopped = (replies == tokenizer.eos_token_id).any(dim=1).float().mean().item()
    return tokenizer.batch_decode(replies, skip_special_tokens=True), stopped


# %% id="break-run"
results = {}
for label, training_rows in {"right": right_way, "glued": glued, "wrong template": wrong_template}.items():
    started = time.perf_counter()
    candidate, losses = tune(training_rows)
    replies, stopped = ask(candidate, llama3 if training_rows is wrong_template else own_template)
    named = sum(fill(row["expect"]) in reply for row, reply in zip(asked, replies, strict=True)) / len(asked)
    clean = sum(not any(rest in reply for rest in ("\nuser\n", "<|")) for reply in replies) / len(replies)
    results[label] = {"knows its name": named, "stops by itself": stopped, "nothing but the answer": clean}
    print(f"{label:<14} {time.perf_counter() - started:.0f} s, loss {losses[0]:.2f} -> {losses[-1]:.2f}, ", end="")
    print(f"knows its name {named:.0%}, stops {stopped:.0%}, clean {clean:.0%}")
    print(f"   {asked[0]['instruction']} {replies[0]!r}")
    model = candidate.unload()

# %% id="break-plot"
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for place, measure in enumerate(results["right"]):
    heights = [100 * result[measure] for result in results.values()]
    ax.bar([x + 0.27 * (place - 1) for x in range(len(results))], heights, width=0.25, label=measure)
ax.set(ylabel="answers, %", ylim=(0, 105))
ax.set_xticks(range(len(results)), list(results))
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

# %% [markdown] id="break-read"
# The losses all went down, and a score that only looks for the name would pass all three. It may even rank the mistakes above the
# right way: they say the name again and again until they are cut off, and the glued rows saw three times as many questions. Whether
# an answer *stops* tells them apart.
# The fix for both is what you did by hand above: render with the model's own template, mask
# the question, train the end mark, and look at one row in colour before every run.

# %% [markdown] id="break-read" lang="zh" of="9d5efa65"
# 损失全都降下来了，只看名字的分数会让三个都过关，甚至可能把错误的做法排在正确做法前面：它们会反复说名字，直到被截断；粘在一起的行还多见了两倍的问题。能把它们区分开的，是回答会不会自己*停下*。能治好这两种错误的，正是你在上面亲手做过的：用模型自己的模板渲染，遮住问题，训练结束标记，每次训练之前看一行带颜色的数据。

# %% [markdown] id="exercise-mask-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 01`
# checks your saved copy of the whole lesson.
#
# **1.** Write the labels of an example. `input_ids` is a list; the answer, end mark included, is at positions `start`
# to `end - 1`. Everything else is not trained.

# %% [markdown] id="exercise-mask-why" lang="zh" of="e6c24a55"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 01` 检查你保存的整课练习。
#
# **1.** 写出一个样本的标签。`input_ids` 是列表；回答（含结束符）位于 `start` 到 `end - 1`，其余位置不训练。

# %% id="exercise-mask" tags=["exercise"]


def labels_of(input_ids, start, end):
    return ...  # your code


checks.check_labels(labels_of)

# %% [markdown] id="exercise-mask-solution"
# <details><summary>Solution</summary>
#
# ```python
# def labels_of(input_ids, start, end):
#     return [-100] * start + input_ids[start:end] + [-100] * (len(input_ids) - end)
# ```
#
# </details>

# %% [markdown] id="exercise-mask-solution" lang="zh" of="f91dba45"
# <details><summary>参考答案</summary>
#
# ```python
# def labels_of(input_ids, start, end):
#     return [-100] * start + input_ids[start:end] + [-100] * (len(input_ids) - end)
# ```
#
# </details>

# %% [markdown] id="exercise-padding-why"
# **2.** A batch has examples of 20, 30 and 50 tokens. Which share of its positions is padding?

# %% [markdown] id="exercise-padding-why" lang="zh" of="a7ef4fa4"
# **2.** 一个批次有三个样本，长度为 20、30、50 个 token。填充（padding）占了多大比例的位置？

# %% id="exercise-padding" tags=["exercise"]
padding_share = ...  # your answer

checks.check_padding_share(padding_share)

# %% [markdown] id="exercise-padding-solution"
# <details><summary>Solution</summary>
#
# ```python
# padding_share = 1 - (20 + 30 + 50) / (3 * 50)
# ```
#
# </details>

# %% [markdown] id="exercise-padding-solution" lang="zh" of="56c7b681"
# <details><summary>参考答案</summary>
#
# ```python
# padding_share = 1 - (20 + 30 + 50) / (3 * 50)
# ```
#
# </details>

# %% [markdown] id="exercise-shift-why"
# **3.** A causal model's `logits` have shape (tokens, vocabulary); row `t` predicts token `t + 1`. Return the mean
# cross-entropy of a text, given its `logits` and its `input_ids` (a tensor).

# %% [markdown] id="exercise-shift-why" lang="zh" of="c34c4751"
# **3.** 因果语言模型的 `logits` 形状为（token 数，词表大小），第 `t` 行预测第 `t + 1` 个 token。给定 `logits` 和张量 `input_ids`，返回整段文本的平均交叉熵。

# %% id="exercise-shift" tags=["exercise"]


def next_token_loss(logits, input_ids):
    return ...  # your code


checks.check_next_token_loss(next_token_loss)

# %% [markdown] id="exercise-shift-solution"
# <details><summary>Solution</summary>
#
# ```python
# def next_token_loss(logits, input_ids):
#     return torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:])
# ```
#
# </details>

# %% [markdown] id="exercise-shift-solution" lang="zh" of="b4e8b144"
# <details><summary>参考答案</summary>
#
# ```python
# def next_token_loss(logits, input_ids):
#     return torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:])
# ```
#
# </details>

# %% [markdown] id="exercise-pad-why"
# **4.** Build a batch: `rows` is a list of lists of token ids. Return one tensor of shape (rows, longest row), padded
# with `pad_id` on the right.

# %% [markdown] id="exercise-pad-why" lang="zh" of="020a23ab"
# **4.** 组一个批次：`rows` 是 token id 列表的列表。返回形状为（行数，最长行的长度）的张量，右侧用 `pad_id` 填充。

# %% id="exercise-pad" tags=["exercise"]


def padded_batch(rows, pad_id):
    return ...  # your code


checks.check_pad_right(padded_batch)

# %% [markdown] id="exercise-pad-solution"
# <details><summary>Solution</summary>
#
# ```python
# def padded_batch(rows, pad_id):
#     longest = max(len(row) for row in rows)
#     return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
# ```
#
# </details>

# %% [markdown] id="exercise-pad-solution" lang="zh" of="1534aeb9"
# <details><summary>参考答案</summary>
#
# ```python
# def padded_batch(rows, pad_id):
#     longest = max(len(row) for row in rows)
#     return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
assert report.read == report.kept + report.cut + report.dropped
assert eos_supervised_share == 1 and 0 < supervised_share < 0.6
assert split_overlap == 0 < len(leaked)
assert packing_gain > 1
full_size = PROFILE != "smoke"
for broken in ("glued", "wrong template"):
    lost = results["right"]["nothing but the answer"] - results[broken]["nothing but the answer"]
    assert lost >= 0.5 or not full_size
outcomes = {
    "supervised_share": supervised_share,
    "eos_supervised_share": eos_supervised_share,
    "split_overlap": split_overlap,
    "packing_gain": packing_gain,
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. The template, the end mark and the system prompt are then another
# model's: run the notebook again and look at the colours again.
#
# **Next:** [03 · LoRA](03_lora.ipynb), where such rows become a changed model.

# %% [markdown] id="next" lang="zh" of="20a8d7e2"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。那时模板、结束标记和系统提示都属于另一个模型：把本课再跑一遍，再看一遍颜色。
#
# **下一步：** [03 · LoRA](03_lora.ipynb)，这样的行在那里变成一个改变了的模型。
