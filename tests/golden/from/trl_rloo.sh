trl rloo --model_name_or_path org/chat-1b --dataset_name data/orders_train.jsonl --reward_funcs exact_answer \
  --max_completion_length 64 --normalize_advantages false --use_peft
