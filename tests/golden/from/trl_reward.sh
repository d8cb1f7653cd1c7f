python trl/scripts/reward.py --model_name_or_path org/chat-1b --dataset_name data/preference_en.jsonl --attn_implementation sdpa --max_length 2048
