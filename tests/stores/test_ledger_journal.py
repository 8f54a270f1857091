"""The ledger's journal: order, segments, intents, damage, and what a process that died leaves behind."""

from __future__ import annotations

import os

import pytest

from hookline.stores import journal_segment, ledger_journal
from hookline.stores.ledger_journal import Full, LedgerJournal
from hookline.testing.record_contract import entry


@pytest.fixture
def open_journal(tmp_path):
    opened = []

    def open_again(**options):
        opened.append(LedgerJournal(tmp_path, fsync_ms=0, **options))
        return opened[-1]

    yield open_again
    for journal in opened:
        journal.close()


@pytest.fixture
def die():
    """What `kill -9` does to a journal: descriptors close, files stay."""

    def die(journal):
        journal._is_closed = True
        for segment in journal._own.segments:
            os.close(segment.fd)
        os.close(journal._own.lock_fd)
        return [segment.path for segment in journal._own.segments]

    return die


def read_all(journal):
    rows = []
    while (batch := journal.read()) is not None:
        rows += batch.entries
        journal.done(batch)
    return rows


def ids(rows):
    return [row.id for row in rows]


def test_rows_come_in_order_through_many_segments_and_leave_one_file(tmp_path, monkeypatch, open_journal):
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", 500)
    monkeypatch.setattr(journal_segment, "CHUNK_BYTES", 300)
    journal = open_journal()
    for number in range(50):
        journal.book(entry(id=str(number)))

    assert ids(read_all(journal)) == [str(number) for number in range(50)]
    assert journal.waiting_bytes == 0
    assert len(list(tmp_path.glob("*.journal"))) == 1
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_done_is_read_again(open_journal):
    journal = open_journal()
    journal.book(entry(id="a"))

    assert ids(journal.read().entries) == ["a"]
    assert ids(read_all(journal)) == ["a"]
    assert read_all(journal) == []


def test_rows_that_are_too_many_for_memory_are_read_from_the_files(monkeypatch, open_journal):
    monkeypatch.setattr(ledger_journal, "RECENT_MAX", 3)
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", 500)
    journal = open_journal()
    seen = []
    for number in range(40):
        journal.intend(entry(id=str(number)))
        journal.book(entry(id=str(number)))
        if number % 9 == 8:
            seen += ids(read_all(journal))

    assert [*seen, *ids(read_all(journal))] == [str(number) for number in range(40)]
    assert journal.waiting_bytes == 0


def fill(journal):
    """How many rows there is room for."""
    for number in range(1_000):
        try:
            journal.book(entry(id=f"{id(journal)}.{number}"))
        except Full:
            return number
    pytest.fail("it is never full")


def test_room_is_counted_over_all_segments_and_comes_back_when_they_are_done(monkeypatch, open_journal):
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", 500)
    journal = open_journal(max_bytes=4000)

    first = fill(journal)
    assert 3000 < journal.waiting_bytes <= 4000
    assert len(read_all(journal)) == first

    assert abs(fill(journal) - first) <= 1
    assert 3000 < journal.waiting_bytes <= 4000


def test_what_was_taken_over_takes_room(monkeypatch, open_journal, die):
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", 500)
    dead, journal = open_journal(max_bytes=2000), open_journal(max_bytes=4000)
    of_the_dead = fill(dead)
    die(dead)
    assert journal.adopt() == 1

    beside_it = fill(journal)
    assert 3000 < journal.waiting_bytes <= 4000

    assert len(read_all(journal)) == of_the_dead + beside_it
    assert fill(journal) > beside_it


def test_the_files_of_a_living_process_are_left_to_it(open_journal, die):
    first, second = open_journal(), open_journal()
    first.book(entry(id="a"))

    assert second.adopt() == 0
    die(first)
    assert second.adopt() == 1
    assert ids(read_all(second)) == ["a"]


def test_two_that_look_at_once_share_the_dead_between_them(open_journal, die):
    dead = [open_journal() for _ in range(4)]
    for number, journal in enumerate(dead):
        journal.book(entry(id=str(number)))
        die(journal)
    living = [open_journal(), open_journal()]

    taken = [journal.adopt() for journal in living]

    assert sum(taken) == 4
    assert sorted(ids([*read_all(living[0]), *read_all(living[1])])) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("segment_bytes", [200, 10_000])
def test_a_dead_process_owes_what_it_intended_and_neither_booked_nor_withdrew(
    tmp_path, monkeypatch, open_journal, die, segment_bytes
):
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", segment_bytes)
    monkeypatch.setattr(journal_segment, "CHUNK_BYTES", 300)
    first = open_journal()
    for id in "abcd":
        first.intend(entry(id=id, cost_nanousd=90))
    first.book(entry(id="b", cost_nanousd=30))
    first.withdraw("c")
    die(first)
    second = open_journal()
    second.adopt()

    recovered, rows = {}, []
    while (batch := second.read()) is not None:
        rows += batch.entries
        recovered.update(batch.recovered)
        second.done(batch)

    assert {row.id: row.cost_nanousd for row in rows} == {"a": 90, "b": 30, "d": 90}
    assert recovered == {"a": 90, "b": 30, "c": 0, "d": 90}
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_charges_that_were_not_committed_are_read_again_by_the_next(open_journal, die):
    first = open_journal()
    first.intend(entry(id="a", cost_nanousd=90))
    die(first)
    second = open_journal()
    second.adopt()
    assert ids(second.read().entries) == []
    second.close()

    third = open_journal()
    assert third.adopt() == 1
    assert ids(read_all(third)) == ["a"]


def test_a_call_that_runs_on_and_on_does_not_keep_the_segments(tmp_path, monkeypatch, open_journal, die):
    monkeypatch.setattr(ledger_journal, "SEGMENT_BYTES", 500)
    journal = open_journal()
    journal.intend(entry(id="long", cost_nanousd=90))
    for number in range(500):
        journal.intend(entry(id=str(number)))
        journal.book(entry(id=str(number)))
    read_all(journal)

    assert len(list(tmp_path.glob("*.journal"))) <= ledger_journal.SEGMENTS_KEPT + 1
    assert journal.open_intents == 1
    die(journal)
    second = open_journal()
    second.adopt()
    assert [row.cost_nanousd for row in read_all(second) if row.id == "long"] == [90]


def test_a_line_that_was_being_written_is_cut(tmp_path, open_journal, die):
    first = open_journal()
    first.book(entry(id="a"))
    (left,) = die(first)
    left.write_bytes(left.read_bytes() + b'R12345678 ["b", "call')

    second = open_journal()
    second.adopt()

    assert ids(read_all(second)) == ["a"]
    assert list(tmp_path.glob("*.damaged")) == []


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_damaged_line_is_made_good_by_its_twin_and_charged(tmp_path, open_journal, die, line, caplog):
    first = open_journal()
    for id in "ab":
        first.intend(entry(id=id, cost_nanousd=90, scopes=("key:ci",)))
        first.book(entry(id=id, cost_nanousd=30, scopes=("key:ci",)))
    (left,) = die(first)
    lines = left.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"0", b"1", 1) if b"0" in lines[line] else b"#" + lines[line][1:]
    left.write_bytes(b"".join(lines))

    second = open_journal()
    second.adopt()
    rows = read_all(second)

    own = {row.id: row.cost_nanousd for row in rows if row.scopes == ("key:ci",) or list(row.scopes) == ["key:ci"]}
    damaged = [row for row in rows if row.id.startswith("damaged:")]
    assert own == {"a": 30, "b": 30} | ({"ab"[line // 2]: 90} if line % 2 else {})
    assert [(list(row.scopes), row.is_estimated) for row in damaged] == [(["global"], True)]
    assert damaged[0].cost_nanousd >= 90
    assert "can't be read" in caplog.text
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_damage_costs_at_least_what_the_lost_calls_may_have_cost(tmp_path, open_journal, die):
    first = open_journal()
    for number in range(20):
        first.intend(entry(id=str(number), cost_nanousd=90))
    (left,) = die(first)
    lines = left.read_bytes().splitlines(keepends=True)
    left.write_bytes(lines[0] + b"\0" * sum(map(len, lines[1:-1])) + b"\n" + lines[-1])

    second = open_journal()
    second.adopt()

    assert sum(row.cost_nanousd for row in read_all(second)) >= 20 * 90


def test_a_full_journal_refuses_intents_before_rows(open_journal):
    journal = open_journal(max_bytes=10_000)
    for number in range(1_000):
        try:
            journal.intend(entry(id=str(number)))
        except Full:
            break
    booked = 0
    with pytest.raises(Full):
        while True:
            journal.book(entry(id=str(booked)))
            booked += 1

    assert number > 10
    assert booked > 2, "a fifth of the room was left for them"
    assert journal.is_nearly_full
    assert len(read_all(journal)) == booked
    journal.intend(entry(id="again"))


def test_what_is_appended_is_synced(tmp_path, monkeypatch):
    import threading

    synced = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.set())
    journal = LedgerJournal(tmp_path, fsync_ms=1)

    journal.book(entry(id="a"))

    assert synced.wait(30)
    journal.close()
