"""Settings: what TOML and Python may say, and what is refused."""

import os
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from slicemill.common.errors import ConfigError, ModelError, UsageError
from slicemill.train.cli import train as train_command
from slicemill.train.config import CHOICES, KINDS, RECIPES, Config, make_config, read_config, to_toml
from slicemill.train.data.augment import SHARES
from slicemill.train.run.checkpoint import LAST, read_state
from slicemill.train.settings import Recipe


class TestConfig:
    def test_toml_comes_back_as_it_was(self, tmp_path):
        config = Config(
            context=5, max_minutes=2.5, augment=0.0, device="cpu", ignore='un"sure\\to\ttest\n', compile=True
        )
        (tmp_path / "c.toml").write_text(to_toml(config))
        assert read_config(tmp_path / "c.toml") == config

    def test_kinds_of_changes_are_names_or_a_string_of_names(self, tmp_path):
        config = Config(augmentations=("noise", "mirror"), oblique=3)
        assert config == Config(augmentations="noise mirror", oblique=3)
        assert config.kinds == ("noise", "mirror")
        assert 'augmentations = "noise mirror"' in to_toml(config).splitlines()
        for text in ('augmentations = "noise mirror"', 'augmentations = ["noise", "mirror"]'):
            (tmp_path / "c.toml").write_text(f"oblique = 3\n{text}")
            assert read_config(tmp_path / "c.toml") == config
        assert Config().kinds == KINDS == tuple(SHARES)

    def test_a_recipe_is_what_a_file_and_options_start_from(self, tmp_path):
        nodules = make_config("nodules")
        assert (nodules.context, nodules.context_spacing_mm, nodules.spacing_mm) == (7, 2.5, 0.75)
        assert (nodules.window_low, nodules.window_high, nodules.mining) == (-1000, 400, 2)
        # Without slices from anywhere, the network never sees what lies outside of the lungs.
        assert nodules.tumor_share + nodules.organ_share + nodules.hard_share == pytest.approx(0.8)
        (tmp_path / "c.toml").write_text("context = 5\n")
        assert read_config(tmp_path / "c.toml", nodules) == replace(nodules, context=5)
        assert make_config() == Config()
        assert set(RECIPES) == set(get_args(Recipe))
        with pytest.raises(UsageError, match="--recipe livers: must be one of nodules"):
            make_config("livers")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"organ_share": -0.1}, "organ_share = -0.1: must not be negative"),
            ({"hard_share": -0.1}, "hard_share = -0.1: must not be negative"),
            ({"test": 0.9}, "test = 0.9: their sum must be below 1"),
            ({"test": -0.1}, "test = -0.1: must not be negative"),
            ({"mining": 1}, "mining = 1: needs a hard_share above 0"),
            ({"mining": 21, "hard_share": 0.1}, "mining = 21: must be between 0 and 20"),
            ({"validation": 0.0}, "validation = 0.0: must be above 0"),
            (
                {"hard_share": 0.3},
                "tumor_share = 0.5, organ_share = 0.3, hard_share = 0.3: their sum must not exceed 1",
            ),
        ],
    )
    def test_an_error_names_the_setting_that_is_wrong(self, values, message):
        with pytest.raises(UsageError, match=message):
            Config(**values)

    def test_the_command_has_the_choices_of_the_settings(self):
        option = get_type_hints(train_command)["precision"]
        assert get_args(get_args(option)[0]) == CHOICES["precision"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("contxt = 3", "contxt: is not a setting; the settings are context"),
            ("context = 2", "must be 1, 3, 5 or 7"),
            ("size = 100", "must be a multiple of 16"),
            ('batch = "x"', "batch = 'x': Expected `int`"),
            ("tumor_share = 0.9", "must not exceed 1"),
            ("window_low = 500.0", "below the upper one"),
            ("validation = 0.9", "so that patients are left to train on"),
            ("context = ", "cannot be read as TOML"),
            ("seed = -1", "must not be negative"),
            ("seed = 1267650600228229401496703205376", "below 2\\*\\*63"),
            ("batch = 1000000", "must be between 1 and 4096"),
            ("crop = 16", "must be a multiple of 16 .* from 32 to 4096"),
            ("window_low = -inf", "both ends must be finite"),
            ("hard_share = 0.5", "their sum must not exceed 1"),
            ('augmentations = "mirror twist"', "augmentations = mirror twist: must be names of mirror, move, elastic"),
            ('augmentations = ["mirror", "twist"]', "augmentations = mirror twist: must be names of"),
            ("augmentations = 3", "augmentations = 3: Expected"),
            ("lesion_balance = 2.0", "must be between 0 and 1"),
            ("oblique = 9", "oblique = 9: must be between 0 and 8"),
            ("oblique = -1", "must be between 0 and 8"),
            ("compile = 1", "compile = 1: Expected `bool`"),
            ("tumor_weight = 0", "must be above 0"),
            ('precision = "fp8"', "must be auto, fp32, bf16 or fp16"),
            ("steps = -1", "must not be negative"),
            ("max_minutes = -1", "must not be negative"),
            ("learning_rate = nan", "must be above 0"),
            ("tumor_share = -0.5", "must not be negative"),
            ("depth = 20000", "must be between 1 and 6"),
            ('optimizer = "adam"', "must be muon, adamw or sgd"),
            ('decay = "linear"', "must be cosine or poly"),
            ('norm = "group"', "must be batch or instance"),
            ("patience = -1", "must not be negative"),
            ("window_low = 400", "the lower end must be below the upper one"),
        ],
    )
    def test_a_setting_that_cannot_work_is_one_clear_error(self, text, message, tmp_path):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ConfigError, match=f"c.toml: .*{message}"):
            read_config(tmp_path / "c.toml")


@pytest.mark.timeout(20)
def test_settings_and_checkpoints_are_regular_files_of_a_limited_size(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.toml")
    os.mkfifo(tmp_path / LAST)
    with pytest.raises(ConfigError, match=r"pipe\.toml: cannot be read \(is not a regular file"):
        read_config(tmp_path / "pipe.toml")
    with pytest.raises(ModelError, match="is not a regular file"):
        read_state(tmp_path)
    monkeypatch.setattr("slicemill.common.files.MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "x.toml").write_text("epochs = 1 # and a comment")
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read \(has 26 bytes"):
        read_config(tmp_path / "x.toml")
