"""Fine-tune the reconstructor on a GPU (CUDA or Apple's MPS): it learns to restore masked tokens.

    python models/reconstructor/train_gpu.py --data_path data/processed/processed_data.json \
        --output_dir models/reconstructor/fine-tuned --device cuda --max_length 512 --use_amp \
        --gradient_accumulation_steps 4 --batch_size 4

What it reads and writes is in `train_cpu.py`, the implementation in `training.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.artifacts import run
from models.reconstructor.training import fine_tune, parse_args


def main(argv=None):
    return fine_tune(parse_args(argv, devices=("cuda", "mps"), doc=__doc__))


if __name__ == "__main__":
    run(main)
