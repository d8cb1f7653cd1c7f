export MODEL=org/base-1b
trl sft --model_name_or_path $MODEL --dataset_name data/general_en.jsonl --output_dir out --max_length 512 --loss_type dft --completion_only_loss false --bf16 --seed 3
