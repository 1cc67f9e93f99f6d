"""Tars by hand: what the standard library reads back, and damage that is seen."""

from __future__ import annotations

import io
import tarfile

import pytest

from shards.tar import END_OF_ARCHIVE, encode_member, members, padded

CONTENT = {"a/00000.jpg": b"x" * 700, "a/00000.lz4": b"", "a/00001.jpg": b"y" * 512}
ARCHIVE = b"".join(encode_member(name, data) for name, data in CONTENT.items()) + END_OF_ARCHIVE


def test_the_standard_library_reads_what_is_written():
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as archive:
        assert {entry.name: archive.extractfile(entry).read() for entry in archive} == CONTENT
        for entry in archive:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) == (
                0,
                0,
                0,
                "root",
                "root",
                0o644,
            )


def test_members_give_the_place_of_each_file_s_bytes():
    found = {
        member.name: ARCHIVE[member.offset : member.offset + member.size] for member in members(io.BytesIO(ARCHIVE))
    }
    assert found == CONTENT


def test_sizes_are_rounded_up_to_blocks():
    assert [padded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (ARCHIVE[:-512], "two zero blocks"),
        (ARCHIVE + bytes(512), "two zero blocks"),
        (ARCHIVE[:900], "ends at byte"),
        (b"?" + ARCHIVE[1:], "no tar header at byte 0"),
        (b"", "no tar header at byte 0"),
    ],
)
def test_damage_is_named(damaged, message):
    with pytest.raises(ValueError, match=message):
        list(members(io.BytesIO(damaged)))


def test_a_folder_entry_is_not_one_of_our_members():
    entry = tarfile.TarInfo("folder")
    entry.type = tarfile.DIRTYPE
    with pytest.raises(ValueError, match="no regular file"):
        list(members(io.BytesIO(entry.tobuf(tarfile.USTAR_FORMAT) + END_OF_ARCHIVE)))


def test_a_name_of_more_than_100_bytes_is_refused():
    with pytest.raises(ValueError, match="more than 100 bytes"):
        encode_member("é" * 51, b"")
