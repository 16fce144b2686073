"""What docs/data.md shows of sources and formats runs as it stands there."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ts2_lightning.data import SFTData, Source

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
CHAT = [{"prompt": f"chat {n}", "completion": "yes"} for n in range(4)]
TICKETS = [
    {"status": "closed" if n else "open", "subject": f"ticket {n}", "text": "It fails.", "reply": "Try again."}
    for n in range(5)
]
GENERAL = [{"question": f"general {n}", "answer": "no"} for n in range(8)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Source | str]]:
    """The page's files, with rows that they are for; and its sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = re.findall(r"^```(?:python|yaml)\n# ([\w.]+)\n(.*?)^```", PAGE, re.S | re.M)
    for name, block in blocks:
        Path(name).write_text(block, encoding="utf-8")
    for name, rows in (("chat", CHAT), ("tickets", TICKETS), ("general", GENERAL)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = yaml.safe_load(Path("mix.yaml").read_text())["data"]["train"]
    yield [Source(**source) if isinstance(source, dict) else source for source in sources]
    sys.modules.pop("tickets", None)


def test_a_mix_of_sources(files: list[Source | str], tokenizer_directory: str) -> None:
    """Closed tickets come two or three times in an epoch, a quarter of the general rows once."""
    data = SFTData(files, tokenizer=tokenizer_directory, template="plain", batch_size=1)
    data.load("train")
    rows = data.rows("train")
    assert (rows.counts.read, rows.counts.kept) == (17, 16)
    assert data.times is not None
    assert data.times.tolist() == [1.0] * 4 + [2.5] * 4 + [0.25] * 8
    assert data.steps_per_epoch == 4 + 10 + 2
    seen = Counter(row for batch in data.train_dataloader() for row in batch["row_index"].tolist())
    assert {seen[row] for row in range(4)} == {1}
    assert sorted(seen[row] for row in range(4, 8)) == [2, 2, 3, 3]
    assert sum(seen[row] for row in range(8, 16)) == 2
    assert data.template is not None
    texts = [data.template.tokenizer.decode(rows[row].ids) for row in range(4, 8)]
    assert [f"ticket {n}\n\nIt fails." in text for n, text in enumerate(texts, 1)] == [True] * 4
