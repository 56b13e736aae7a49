"""Tests of what is never touched: `python eval/test_protect.py` or pytest."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from eval.protect import Protection, read_names, take_markers, with_markers


def found(text, **kinds):
    return [text[start:end] for start, end in sorted(Protection(**{"negations": False, **kinds}).spans(text))]


def test_negations():
    text = "Do not go; I can't, won't and cannot. Nobody knows another notion, nor the knot. WITHOUT it isn’t None of ours."
    expected = ["not", "can't", "won't", "cannot", "Nobody", "nor", "WITHOUT", "isn’t", "None"]
    assert found(text, negations=True) == expected
    assert found(text) == [], "the control"


def test_numbers():
    text = "In 1926, he paid $1,000 (3.5%) at 10:45. See A4, 2024-01-31! None: x."
    assert found(text, numbers=True) == ["1926", "$1,000", "(3.5%", "10:45", "A4", "2024-01-31"]


def test_names_are_whole_words_where_words_have_spaces():
    text = "Ann met Anna and Ann Lee-Ann; 田中さん"
    assert found(text, names=("Ann",)) == ["Ann", "Ann", "Ann"]
    assert found(text, names=("Ann Lee", "田中", "", "Bo")) == ["Ann Lee", "田中"]


def test_patterns_and_lines():
    text = "a: /x/y.z\r\n\r\nb: /q\nlast"
    assert found(text, patterns=(r"/[\w/.]+", r"z*")) == ["/x/y.z", "z", "/q"]
    assert found(text, first_lines=2) == ["a: /x/y.z\r\n", "\r\n"] and found(text, last_lines=2) == ["b: /q\n", "last"]
    assert len(found(text, first_lines=9)) == 4 and found("", first_lines=1, last_lines=1, numbers=True, negations=True) == []


@pytest.mark.parametrize(
    "pattern, reason", [("(", "missing"), ("a{99999999999}", "the repetition number is too large"),
                        ("(" * 3000 + ")" * 3000, "maximum recursion depth"), (f"a{{{'9' * 5000}}}", "Exceeds the limit")],
)
def test_a_pattern_that_is_none_is_refused(pattern, reason):
    with pytest.raises(InputError, match=f"expected a regular expression, found that {reason}") as refused:
        Protection(patterns=(pattern,))
    assert str(refused.value).startswith(f"keep_pattern '{pattern}': ") and "\n" not in str(refused.value)


def test_markers_are_taken_out_and_spans_know_where_they_were():
    text = "a <keep>b</keep> c <keep></keep> d <keep>é\ne</keep><keep> </keep> </keep> <keep>"
    plain, spans, cuts = take_markers(text)
    assert plain == "a b c  d é\ne  </keep> <keep>"
    assert [plain[start:end] for start, end in spans] == ["b", "", "é\ne", " "]
    for some in ([(0, len(plain))], [(2, 3)], [(0, 2), (3, 9)], [(1, 10), (10, 11)], []):
        mapped = with_markers(some, cuts)
        assert "".join(text[a:b] for a, b in mapped) == "".join(plain[a:b] for a, b in some)
        assert all(a < b for a, b in mapped)
    assert take_markers("a <keep> b <keep>c</keep> d")[0] == "a <keep> b c d", "the nearest one"
    assert take_markers("no <keep> here") == ("no <keep> here", [], [])


def test_a_megabyte_without_a_space_takes_no_longer():
    text = "n" * 1_000_000
    start = time.monotonic()
    everything = Protection(numbers=True, names=("nt",), first_lines=1, last_lines=1)
    assert [(0, len(text))] * 2 == everything.spans(text) and take_markers("<keep>" * 200_000)[1] == []
    assert time.monotonic() - start < 5


def test_names_come_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffAnn Lee\r\n\n  Bo \n", encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == ("Ann Lee", "Bo")
    (tmp_path / "latin.txt").write_bytes(b"Ren\xe9e")
    with pytest.raises(InputError, match="expected names in UTF-8"):
        read_names(tmp_path / "latin.txt")
    with pytest.raises(FileNotFoundError):
        read_names(tmp_path / "none.txt")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
