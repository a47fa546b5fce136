"""The data of a training under ESPnet3 is the same data as under ESPnet2."""

import numpy as np
import pytest
import soundfile
import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.calibration import calibration_batches
from espnet_omnisparse.search.dev_set import _valid_batches
from espnet_omnisparse.tasks import OmniASRTask

DATASET = """
import pathlib
import soundfile
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field

class Dataset(BaseDataset):
    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = pathlib.Path(self.paths[int(index)])
        speech, _ = soundfile.read(path, dtype="float32")
        return {"speech": speech, "text": path.with_suffix(".txt").read_text()}
"""


@pytest.fixture
def configs(tmp_path):
    """The same data as ESPnet2's configuration names it, and as ESPnet3's does."""
    generator = np.random.default_rng(0)
    scp, text, paths = tmp_path / "wav.scp", tmp_path / "text", []
    with scp.open("w") as audio, text.open("w") as texts:
        for number, seconds in enumerate((0.5, 0.8, 0.6, 1.0, 0.7)):
            path = tmp_path / f"{number}.wav"
            noise = 0.1 * generator.standard_normal(int(16_000 * seconds))
            soundfile.write(path, noise, 16_000)
            path.with_suffix(".txt").write_text("ab" * (number + 1))
            print(f"utt{number} {path}", file=audio)
            print(f"utt{number} {'ab' * (number + 1)}", file=texts)
            paths.append(str(path))
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "__init__.py").write_text(DATASET)
    common = OmniASRTask.get_default_config() | {
        "token_type": "char",
        "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
        # what would change the audio of a training
        "speech_volume_normalize": 0.5,
    }
    lists = [[str(scp), "speech", "sound"], [str(text), "text", "text"]]
    entries = [{"data_src_args": {"paths": part}} for part in (paths[:3], paths[3:])]
    return (
        common
        | {f"{s}_data_path_and_name_and_type": lists for s in ("train", "valid")},
        common
        | {
            "dataset": {
                "_target_": "espnet3.components.data.data_organizer.DataOrganizer",
                "_recursive_": False,
                "_convert_": "all",
                "recipe_dir": str(tmp_path),
                "train": entries,
                "valid": entries,
                # of a split of its own, which ESPnet3 leaves in the configuration
                "preprocessor": {"train": {"_target_": "nowhere.Augment"}},
            }
        },
    )


@pytest.mark.parametrize("batches", [calibration_batches, _valid_batches])
def test_it_is_the_same_data(configs, batches):
    listed, of_recipe = (list(batches(config, 100)) for config in configs)
    assert sum(len(batch["speech"]) for batch in of_recipe) == 5
    for one, other in zip(listed, of_recipe, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def test_a_part_of_it_is_always_the_same_part(configs):
    _, config = configs
    first, again = (list(calibration_batches(config, 3, 2)) for _ in range(2))
    assert [len(batch["speech"]) for batch in first] == [2, 1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["speech"], other["speech"])


def test_where_the_datasets_are_not_found_it_is_said(configs, tmp_path):
    _, config = configs
    (tmp_path / "dataset" / "__init__.py").unlink()
    with pytest.raises(UserError, match="run in the recipe's folder"):
        list(calibration_batches(config, 3))
