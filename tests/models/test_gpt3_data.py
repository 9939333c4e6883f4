"""The text: the same everywhere, split by file, addressed by step."""

from pathlib import Path

import numpy as np
import pytest

from models.gpt3.data import Text


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.read(seed=3)


def test_standard_library_is_enough_text(text: Text) -> None:
    assert text.train.tokens.size > 5_000_000
    assert 0.02 < text.held_out.tokens.size / text.train.tokens.size < 0.3


def test_batch_depends_on_seed_and_step_alone(text: Text) -> None:
    again = Text.read(seed=3).train.batch(17, 8, 32)
    batch = text.train.batch(17, 8, 32)
    np.testing.assert_array_equal(batch["inputs"], again["inputs"])
    assert (batch["inputs"] != text.train.batch(18, 8, 32)["inputs"]).any()
    assert (batch["inputs"] != Text.read(seed=4).train.batch(17, 8, 32)["inputs"]).any()


def test_targets_are_the_inputs_one_token_later(text: Text) -> None:
    batch = text.train.batch(0, 8, 32)
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
    assert 0 <= batch["inputs"].min() <= batch["inputs"].max() < 256


def test_processes_read_their_rows_only(text: Text) -> None:
    whole = text.train.batch(5, 12, 16)
    parts = [text.train.batch(5, 12, 16, slice(i, i + 4)) for i in (0, 4, 8)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])


def test_split_is_by_sorted_file(tmp_path: Path) -> None:
    for i in reversed(range(20)):
        (tmp_path / f"{i:02}.py").write_text(f"file {i:02}")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text("not this one")
    text = Text.read(tmp_path)
    assert text.held_out.tokens.tobytes() == b"file 09\0file 19"
    assert text.train.tokens.tobytes().startswith(b"file 00\0file 01\0")


def test_too_few_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 0 Python files, too few to split\.$"):
        Text.read(tmp_path)
