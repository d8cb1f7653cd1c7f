WORLD_SIZE=1 python finetune.py --base_model org/llama-7b --data_path data/alpaca_en_demo.json --val_set_size=200 --train_on_inputs False
