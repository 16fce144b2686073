"""What the progress bar writes, to a file and to a terminal."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, StepProgress
from ts2_lightning.callbacks.progress import LINE, TERMINAL, LineTqdm


class Terminal(io.StringIO):
    """A standard output that says it is one."""

    def isatty(self) -> bool:
        return True


def fit(tmp_path: Path, *losses: float, steps: int = 60, ckpt_path: str | None = None, **settings: Any) -> None:
    callbacks = [DistributionMonitor(), StepProgress(refresh_seconds=0)]
    if settings.get("enable_checkpointing"):
        callbacks.append(Checkpoints())  # type: ignore[arg-type]
    trainer = make_trainer(
        tmp_path,
        callbacks=callbacks,
        enable_progress_bar=True,
        max_epochs=len(losses),
        accumulate_grad_batches=2,
        **settings,
    )
    rows = make_rows([1] * (2 * steps))
    trainer.fit(Publisher(losses), loader(rows), loader(rows[:2]), ckpt_path=ckpt_path)


def test_log_has_few_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of 60 steps: a line per tenth of the run and one per validation, no control characters."""
    fit(tmp_path, 2.5, 1.25)
    output = capsys.readouterr().out
    assert "\r" not in output
    assert "\x1b" not in output
    lines = output.splitlines()
    bars = [line for line in lines if line.startswith("Epoch")]
    assert len(bars) <= 12
    assert re.match(r"Epoch 2/2: 100%\| 120/120 \[.*objective=.*CE=.*lr=0.1.*support=", bars[-1])
    assert [line for line in lines if line.startswith("Step")] == [
        "Step 60: validation cross-entropy 2.5000",
        "Step 120: validation cross-entropy 1.2500",
    ]
    assert len(lines) == len(bars) + 2


def test_the_sets_of_a_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class InSets(Publisher):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

        def on_validation_epoch_end(self) -> None:
            self.log_dict({"val/cross_entropy": 2.0, "val/b/cross_entropy": 1.0, "val/a/cross_entropy": 3.0})

    rows = make_rows([1] * 4)
    trainer = make_trainer(tmp_path, callbacks=[StepProgress()], enable_progress_bar=True)
    trainer.fit(InSets(), loader(rows), {"b": loader(rows[:2]), "a": loader(rows[2:])})
    assert "Step 4: validation cross-entropy 2.0000 (b 1.0000, a 3.0000)\n" in capsys.readouterr().out


def test_resumed_run_goes_on_counting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 2.5, steps=10, enable_checkpointing=True)
    capsys.readouterr()
    fit(tmp_path, 2.5, 2.5, steps=10, ckpt_path=str(tmp_path / "checkpoints/last.ckpt"), enable_checkpointing=True)
    counts = re.findall(r" (\d+)/20 \[", capsys.readouterr().out)
    assert counts == [str(n) for n in range(11, 21) if n == 11 or n % 2 == 0]


def test_below_one_step_a_second_the_bar_has_seconds_a_step() -> None:
    for bar_format in (TERMINAL, LINE):
        bar = tqdm(total=100, bar_format=bar_format, unit="step", smoothing=0, initial=0, file=io.StringIO())
        for seconds, rate in ((5.0, "2.00step/s"), (40.0, "4.00s/step")):
            bar.n, bar.start_t = 10, bar._time() - seconds
            assert rate in str(bar), str(bar)
        bar.close()


def test_terminal_gets_one_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    fit(tmp_path, 2.5, 1.25)
    output = terminal.getvalue()
    assert "120/120" in output
    assert "objective=" in output
    assert "Step 120: validation cross-entropy 1.2500" in output
    assert output.count("\r") > 60


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_in_a_log(tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Module(Publisher):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def predict_step(self, batch: Any, batch_idx: int) -> int:
            return batch_idx

    trainer = make_trainer(tmp_path, callbacks=[StepProgress()], enable_progress_bar=True)
    arguments = {"verbose": False} if stage != "predict" else {}
    getattr(trainer, stage)(Module((1.0,)), loader(make_rows([1] * 100)), **arguments)
    output = capsys.readouterr().out
    assert "\r" not in output
    assert 1 <= len(output.splitlines()) <= 12
    assert "100/100" in output


def test_lines_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow run shows a line per half minute, and fewer the longer it lasts."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    bar = LineTqdm(total=10_000, file=file)
    monkeypatch.setattr(bar, "_time", lambda: bar.start_t + now[0])
    for _ in range(720):  # two hours, at a step per ten seconds: never a tenth of the way
        now[0] += 10
        bar.n += 1
        bar.refresh()
    lines = file.getvalue().splitlines()
    assert len(lines) == pytest.approx(20 + 20 * 2.5, abs=12)  # 600 s / 30, then 20 ln(7200 / 600)
    bar.close()
