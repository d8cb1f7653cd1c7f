NPROC_PER_NODE=2 swift rlhf --rlhf_type dpo --model org/chat-7b --dataset data/preference_en.jsonl \
  --split_dataset_ratio 0.01 --quant_method bnb --quant_bits 4 --bnb_4bit_quant_type nf4 --rpo_alpha 0.1 --beta 0.2 \
  --loss_type sigmoid --max_length 1024 --per_device_train_batch_size 2 --use_rslora true --use_dora true
