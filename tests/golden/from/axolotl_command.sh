#!/bin/bash
set -e
accelerate launch --num_processes 2 -m axolotl.cli.train tests/golden/from/axolotl_qlora.yml --learning-rate=5e-5 --num-epochs 1
