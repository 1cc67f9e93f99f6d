import pytest

from shards.wording import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 processes"), (1, "1 process"), (2, "2 processes"), (21, "21 processes")]
)
def test_only_one_is_singular(number: int, words: str) -> None:
    assert counted(number, "process", "processes") == words


def test_a_noun_without_a_plural_of_its_own_takes_an_s() -> None:
    assert [counted(number, "video") for number in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
