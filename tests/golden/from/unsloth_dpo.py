from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("org/chat-7b", max_seq_length=1024, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=64, lora_alpha=64)
dataset = load_dataset("org/pairs", split="train")
trainer = DPOTrainer(
    model=model,
    args=DPOConfig(beta=0.1, learning_rate=5e-6, num_train_epochs=3, max_length=1024, output_dir="dpo"),
    train_dataset=dataset,
)
