swift rlhf --rlhf_type gkd --model org/chat-1b --teacher_model org/chat-7b --dataset data/orders_train.jsonl \
  --lmbda 0.25 --beta 1.0 --temperature 1.0 --max_completion_length 64 --tuner_type lora --learning_rate 1e-4
