"""Fine-tune the reconstructor on a CPU: it learns to restore masked tokens.

    python models/reconstructor/train_cpu.py --data_path data/processed/processed_data.json \\
        --output_dir models/reconstructor/fine-tuned --epochs 3 --batch_size 8 --mask_ratio 0.3

Reads the sequence files of data/prepare.py and a base model; writes a model directory that stock transformers
loads, `checkpoint-*`, `training.json` and TensorBoard logs. The implementation is in `training.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.artifacts import run
from models.reconstructor.training import fine_tune, parse_args


def main(argv=None):
    return fine_tune(parse_args(argv, devices=("cpu",), doc=__doc__))


if __name__ == "__main__":
    run(main)
