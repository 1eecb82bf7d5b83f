"""A flood of one kind of line becomes a line now and then, and nothing is lost from the count."""

from bcami.processes.logs import Repetition


def test_repeated_lines_are_held_back_and_counted_in_the_next() -> None:
    repetition = Repetition(apart_s=5.0)
    assert repetition.admit("bad", 1, 0.0) == 1
    assert [repetition.admit("bad", 2, second / 10) for second in range(1, 40)] == [0] * 39
    assert repetition.admit("other", 1, 4.0) == 1
    assert repetition.admit("bad", 1, 5.0) == 79
    assert repetition.admit("bad", 1, 5.1) == 0


def test_the_memory_of_kinds_is_bounded() -> None:
    repetition = Repetition(apart_s=5.0)
    for kind in range(5_000):
        assert repetition.admit(kind, 1, 0.0) == 1
    assert len(repetition._last) <= 1_000
