"""A table on disk: no changed bit is read as another value."""

from __future__ import annotations

import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import planted
from tests.vectors.helpers import evaluated
from traitmill.engine.errors import Step, UsageError
from traitmill.engine.vectors import update_transfer
from traitmill.engine.vectors.evaluation import COLUMNS
from traitmill.engine.vectors.table_file import read_table, write_table
from traitmill.engine.vectors.transfer import COLUMNS as TRANSFER_COLUMNS


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables") / "exp"
    for seed, name in enumerate("ab"):
        evaluated(planted.write_trait(root / name, n_layers=2, seed=seed), ("mean_diff",))
    update_transfer(root, pytest.fail)
    return root


@pytest.mark.parametrize(
    ("name", "columns"),
    [("a/evaluation.parquet", COLUMNS), ("evaluation.parquet", TRANSFER_COLUMNS)],
)
def test_t39_no_changed_bit_is_read_as_another_value(experiment, tmp_path, name, columns):
    content, step = (experiment / name).read_bytes(), Step("vectors", experiment / "a")
    path = tmp_path / "evaluation.parquet"
    path.write_bytes(content)
    whole = read_table(path, columns, step)
    rng = random.Random(39)
    places = {rng.randrange(8 * len(content)) for _ in range(400)}
    places |= {8 * (len(content) - i) - 1 for i in range(1, 200)}  # the footer
    refused = []
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            table, facts = read_table(path, columns, step)
        except UsageError as error:
            refused.append((error.step, error.exit_code))
        else:
            assert table.equals(whole[0])
            assert facts == whole[1]
    assert len(refused) > 500
    assert set(refused) == {(step, 2)}


def test_t39_a_file_cut_short_is_refused(experiment, tmp_path):
    content = (experiment / "evaluation.parquet").read_bytes()
    path = tmp_path / "evaluation.parquet"
    for length in (0, 4, 70, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match="its checksum differs; make it anew"):
            read_table(path, TRANSFER_COLUMNS, Step("vectors", experiment))


def test_other_readers_can_verify_its_pages(experiment):
    path = experiment / "a" / "evaluation.parquet"
    content = path.read_bytes()
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        assert file.read().num_rows == pl.read_parquet(path).height
        start = file.metadata.row_group(0).column(7).data_page_offset
        size = file.metadata.row_group(0).column(7).total_compressed_size
    refused = 0
    for place in range(start, start + size):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                file.read()
        except (OSError, pa.ArrowException):
            refused += 1
    path.write_bytes(content)
    assert refused > size / 2


def test_what_is_missing_closed_or_another_table_is_said(tmp_path):
    path, step = tmp_path / "evaluation.parquet", Step("vectors", tmp_path)
    with pytest.raises(UsageError, match="is missing; make it") as caught:
        read_table(path, ["a"], step)
    assert caught.value.step == step
    write_table(path, pl.DataFrame({"a": [1.5, None]}), {"notes": ['a "sha256": "trap']})
    table, facts = read_table(path, ["a"], step)
    assert table["a"].to_list() == [1.5, None]
    assert facts["notes"] == ['a "sha256": "trap']
    with pytest.raises(UsageError, match="holds another table"):
        read_table(path, ["b"], step)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\); make it anew"):
        read_table(path, ["a"], step)
