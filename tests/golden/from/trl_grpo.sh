trl grpo --model_name_or_path org/chat-1b --dataset_name data/orders_train.jsonl --reward_funcs exact_answer short_answer \
  --beta 0.04 --num_generations 4 --max_completion_length 64 --use_peft
