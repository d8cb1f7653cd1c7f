swift pt --model org/base-1b --train_type full --dataset data/corpus_en.jsonl --max_length 8192 --packing true --learning_rate 1e-5 --streaming false --report_to tensorboard
