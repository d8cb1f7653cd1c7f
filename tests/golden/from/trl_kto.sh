trl kto --model_name_or_path org/chat-1b --dataset_name data/kto_en.jsonl --desirable_weight 1.2 --max_steps 20 --output_dir kto
