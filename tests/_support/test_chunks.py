from ufm._support import chunks


def test_chunks_cover_a_sequence_once_in_order() -> None:
    whole = list(range(10))
    for size in (0, 1, 3, 10, 99):
        parts = [whole[part] for part in chunks(10, size)]
        assert [entry for part in parts for entry in part] == whole
        assert {len(part) for part in parts[:-1]} <= {max(size, 1)}
    assert list(chunks(0, 3)) == []
    assert [part.stop for part in chunks(10, 4)] == [4, 8, 10]
