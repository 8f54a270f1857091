"""The ledger's spool: order, segments, and what a process that died leaves behind."""

from __future__ import annotations

from hookline.stores import ledger_spool
from hookline.stores.ledger_spool import LedgerSpool
from hookline.testing.record_contract import entry


def read_all(spool):
    ids = []
    while read := spool.read():
        segment, rows, end = read
        ids += [row.id for row in rows]
        spool.done(segment, end)
    return ids


def test_rows_come_in_order_through_many_segments_and_leave_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_spool, "SEGMENT_BYTES", 500)
    monkeypatch.setattr(ledger_spool, "CHUNK_BYTES", 300)
    spool = LedgerSpool(tmp_path)
    for number in range(50):
        assert spool.append(entry(id=str(number)))

    assert read_all(spool) == [str(number) for number in range(50)]
    assert spool.waiting_bytes == 0
    assert len(list(tmp_path.glob("*.rows"))) == 1
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_done_is_read_again(tmp_path):
    spool = LedgerSpool(tmp_path)
    spool.append(entry(id="a"))

    assert [row.id for row in spool.read()[1]] == ["a"]
    assert read_all(spool) == ["a"]
    assert read_all(spool) == []


def test_the_files_of_a_living_process_are_left_to_it(tmp_path):
    first, second = LedgerSpool(tmp_path), LedgerSpool(tmp_path)
    first.append(entry(id="a"))

    assert second.adopt() == 0
    first.close()
    assert second.adopt() == 1
    assert read_all(second) == ["a"]


def test_a_row_that_a_dying_process_did_not_end_was_never_booked(tmp_path):
    first = LedgerSpool(tmp_path)
    first.append(entry(id="a"))
    first.close()
    (left,) = tmp_path.glob("*.rows")
    left.write_bytes(left.read_bytes() + b'["b", "call')

    second = LedgerSpool(tmp_path)
    second.adopt()

    assert read_all(second) == ["a"]
    assert not left.exists()


def test_a_line_that_is_no_row_does_not_hold_back_the_others(tmp_path):
    (tmp_path / "1.rows").write_bytes(b'nonsense\n["too", "short"]\n')
    spool = LedgerSpool(tmp_path)
    spool.adopt()
    spool.append(entry(id="a"))

    assert read_all(spool) == ["a"]


def test_a_full_spool_keeps_what_it_has(tmp_path):
    spool = LedgerSpool(tmp_path, max_bytes=400)

    kept = [spool.append(entry(id=str(number))) for number in range(10)]

    assert kept.index(False) == sum(kept)
    assert spool.is_nearly_full or sum(kept) < 3
    assert len(read_all(spool)) == sum(kept)
    assert spool.append(entry(id="again"))
