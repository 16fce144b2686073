"""Every fragment in `configs/data` makes a datamodule."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from ts2_lightning.data import SFTData

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fragments_are_arguments_of_the_datamodule(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTData, "data")
    built = parser.instantiate_classes(parser.parse_object({"data": values})).data
    assert {name: built.sources[name] for name in built.sources if name in values} == {
        name: values[name] for name in built.sources if name in values
    }


def test_defaults_are_the_papers_settings() -> None:
    data = SFTData()
    assert (data.batch_size, data.micro_batch_size, data.max_length, data.overlong) == (128, 8, 2048, "truncate")
