"""Results in Parquet: a part comes back as it was, or not at all, and only with the setting it was made with."""

import math
from typing import Any

import pytest
from pydantic import BaseModel

from semgrad_guard.calibration.examples import Example
from semgrad_guard.errors import ConfigurationError, DataError
from semgrad_guard.evaluation.ray_data import RayPool, clear_unfinished, read_part, read_parts, schema_of, write_part
from semgrad_guard.evaluation.run import Result
from semgrad_guard.records import Score

SETTING = {"seed": 0, "prompt": "plain"}
SCORE = Score(
    semgrad=0.1,
    paragrad=None,
    exgrad=1e-300,
    hybridgrad=0.3,
    nll=1 / 3,
    mean_nll=0.25,
    mean_entropy=0.0,
    max_entropy=2.5,
    length=3,
    path="upper",
    layer_indices=(2, 3),
    layers=(0.125, 0.1),
    later=((0.5, 0.25), (1.0, 2.0)),
)
FULL = Result(
    query="Wo liegt Köln?\n",
    about="Köln",
    stratum="known",
    answer="am Rhein",
    response_ids=(5, 7, 2),
    correct=True,
    score=SCORE,
    samples=("am Rhein", ""),
    p_true=0.75,
    meanings=(0, 0, 1),
    polygraph={"sar": None, "ln-pe": 0.5},
    seconds={"generating": 0.1, "scoring": 0.01},
    failures={},
)
FAILED = Result(query="?", about="?", stratum="", seconds={}, failures={"generating": "RuntimeError: no memory"})


def test_results_come_back_as_they_were(tmp_path):
    path = write_part(tmp_path, [FULL, FAILED], SETTING)
    assert read_part(path, SETTING) == [FULL, FAILED]
    assert list(read_parts(tmp_path, SETTING)) == [FULL, FAILED]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    broken = FULL.model_copy(update={"score": SCORE.model_copy(update={"semgrad": math.nan})})
    (found,) = read_part(write_part(tmp_path, [broken], SETTING), SETTING)
    assert math.isnan(found.score.semgrad)


def test_a_part_of_another_setting_or_a_damaged_one_is_refused(tmp_path):
    path = write_part(tmp_path, [FULL], SETTING)
    with pytest.raises(DataError, match=r"was written with .*'seed': 0.*now it is .*'seed': 1"):
        list(read_parts(tmp_path, SETTING | {"seed": 1}))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="Move it away"):
        list(read_parts(tmp_path, SETTING))


def test_what_was_not_finished_counts_for_nothing(tmp_path):
    left = tmp_path / "0123.4567.unfinished"
    left.write_bytes(b"PAR1")
    assert list(read_parts(tmp_path, SETTING)) == []
    clear_unfinished(tmp_path)
    assert not left.exists()


def test_a_field_that_has_no_place_is_noticed():
    class Odd(BaseModel):
        anything: Any

    with pytest.raises(TypeError, match="no place in Parquet"):
        schema_of(Odd)


def test_parts_that_are_there_are_not_answered_again(tmp_path):
    """Nothing else is asked, so that no process is started either."""
    write_part(tmp_path, [FULL, FAILED], SETTING)
    pool = RayPool(prepare=lambda device: pytest.fail("asked again"), folder=tmp_path)
    assert list(pool([Example(query=FULL.query)], SETTING)) == [FULL]


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"gpus": -1.0}, {"part_size": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RayPool(prepare=lambda device: None, folder=tmp_path, **wrong)
