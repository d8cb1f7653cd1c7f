accelerate launch examples/scripts/dpo.py \
    --model_name_or_path org/chat-1b \
    --dataset_name data/preference_en.jsonl \
    --beta 0.3 --loss_type sigmoid sft --loss_weights 1.0 0.5 \
    --learning_rate 5.0e-6 --use_peft --lora_r 32 --lora_alpha 16 \
    --lora_target_modules q_proj v_proj --output_dir dpo-out
