"""Train nnU-Net's 2D configuration for minutes instead of epochs, then segment scans. Runs in nnU-Net's environment.

Plans, preprocessing, network, loss, optimizer, sampling, augmentation, mirroring and tiling are those of nnU-Net.
The last weights are used. The learning rate falls as nnU-Net, (1 - done) ** 0.9, where `done` is the share of the
minutes. Only the stopping time and the iterations per epoch differ.

nnU-Net's own commands look for a trainer by importing all of its trainers. One of them needs a torchvision that fits
torch, which does not exist for a CPU build of torch. So this script uses the Python interface that those commands call.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POWER = 0.9
"""Exponent of nnU-Net's PolyLRScheduler."""


class TimedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which stops after some minutes."""

    minutes: float = 1.0

    def run_training(self) -> None:
        """Train until the minutes are over. They start with the first epoch, when loaders and network are ready."""
        self.on_train_start()
        start, self.iterations = time.monotonic(), 0
        while (done := self.share(start)) < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            while len(outputs) < self.num_iterations_per_epoch and (not outputs or done < 1):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - min(done, 1.0)) ** POWER
                outputs.append(self.train_step(next(self.dataloader_train)))
                done = self.share(start)
            self.iterations += len(outputs)
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                batches = (next(self.dataloader_val) for _ in range(self.num_val_iterations_per_epoch))
                self.on_validation_epoch_end([self.validation_step(batch) for batch in batches])
            self.on_epoch_end()
        self.seconds = time.monotonic() - start
        self.on_train_end()

    def share(self, start: float) -> float:
        """Return the elapsed share of the minutes."""
        return (time.monotonic() - start) / (60 * self.minutes)


def train(name: str, minutes: float, iterations: int, device: torch.device) -> TimedTrainer:
    """Train on the first fold of ``splits_final.json`` and return the trainer."""
    folder = Path(nnUNet_preprocessed, name)
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    trainer = TimedTrainer({**plans, "continue_training": False}, "2d", 0, dataset, device)
    trainer.minutes = minutes
    trainer.num_iterations_per_epoch = iterations
    trainer.num_val_iterations_per_epoch = max(1, iterations // 5)  # 250 to 50, as nnU-Net has it
    trainer.num_epochs = trainer.save_every = 1_000_000
    trainer.run_training()
    return trainer


def predict(trainer: TimedTrainer, scans: Path, out: Path) -> None:
    """Segment all scans of a folder, with nnU-Net's defaults."""
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(scans), str(out))


def main() -> None:
    """Train, predict, and write a JSON report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(multiprocessing.cpu_count() if arguments.device == "cpu" else 1)  # as nnUNetv2_train does
    trainer = train(arguments.dataset, arguments.minutes, arguments.iterations, torch.device(arguments.device))
    start = time.monotonic()
    predict(trainer, Path(nnUNet_raw, arguments.dataset, "imagesTs"), arguments.out / "segmented")
    report = {
        "epochs": trainer.current_epoch,
        "iterations": trainer.iterations,
        "minutes": trainer.seconds / 60,
        "prediction_minutes": (time.monotonic() - start) / 60,
        "batch": trainer.batch_size,
        "patch": [int(side) for side in trainer.configuration_manager.patch_size],
        "weights": sum(weights.numel() for weights in trainer.network.parameters()),
    }
    (arguments.out / "peer.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
