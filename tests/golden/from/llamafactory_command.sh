FORCE_TORCHRUN=1 llamafactory-cli train \
    --stage dpo --do_train True --model_name_or_path org/chat-7b --dataset preference_en --template llama3 \
    --finetuning_type lora --pref_loss simpo --pref_beta 2.0 --simpo_gamma 1.0 --cutoff_len 1024 \
    --fp16 True --ddp_timeout 180000000 --optim adamw_torch
