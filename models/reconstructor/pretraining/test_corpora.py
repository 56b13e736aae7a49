"""Tests of the corpora: `python models/reconstructor/pretraining/test_corpora.py` or pytest."""

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pytest

from data.artifacts import InputError
from data.scratch import make_scratch
from models.reconstructor.pretraining import corpora
from models.reconstructor.pretraining import corpora_text as read
from models.reconstructor.tokenizer import BASE_MODEL, locate

WIKI = "'''A''' is {{x|{{y}}}} a [[b|c]]<ref>r</ref>.\n== H ==\n* list\n[[File:a|b [[c]]]]End\n==See also==\n[[d]]"


def test_markup_wiki_pages_and_mail_become_plain_text():
    page = "<head>x</head><h1>A</h1><p>One &amp; two<br>three</p><pre>code</pre><table>t</table>"
    assert read.plain(page) == "A\n\nOne & two\n\nthree"
    assert read.without_wiki_markup(WIKI) == "A is a c.\n\nEnd"
    mail = "From: a@b.org\n\nHi Bob,\n> quoted\ncall 212 555 1234 or a@b.org, 2002-07-24\n-- \nme"
    assert read.mail(mail) == "Hi Bob,\ncall 555-0100 or name@example.com, 2002-07-24"


def test_paragraphs_are_joined_to_pieces():
    assert list(read.pieces(["aaa", "bb", "c"], 6)) == ["aaa", "bb\n\nc"]
    assert list(read.pieces(["aaa", "bb", "c"], 4, overshoot=True)) == ["aaa\n\nbb", "c"]


@pytest.mark.parametrize("layout", ["<III", "<IIH"])
def test_a_sword_module_has_each_note_once(layout):
    notes = [b"<p>" + letter * 200 + b"</p>" for letter in (b"a", b"b")]
    blocks = [zlib.compress(b"".join(notes)), zlib.compress(notes[0])]
    books = b"".join(struct.pack("<III", start, len(block), 0) for start, block in zip((0, len(blocks[0])), blocks, strict=True))
    size = len(notes[0])
    verses = [(0, 0, size), (0, 0, size), (0, size, size), (1, 0, 20), (0, 0, 0)]
    found = read.sword(books, b"".join(struct.pack(layout, *verse) for verse in verses), b"".join(blocks))
    assert [note for note in found if note] == ["a" * 200, "b" * 200]


def test_a_corpus_is_cut_from_its_package_and_has_each_document_once(tmp_path, monkeypatch):
    texts = "a&nbsp; " + "a" * 300, "b" * 299, "a " + "a" * 300
    articles = {number: {"title": f"t{number}", "extract": text} for number, text in enumerate(texts)}
    package = tmp_path / "packages" / "toy"
    package.mkdir(parents=True)
    with zipfile.ZipFile(package / "toy-1.whl", "w") as archive:
        archive.writestr("toy/data.json", json.dumps(articles))
    source = corpora.Source("pip", "toy", "1", "*/data.json", "none", read.wiki)
    monkeypatch.setitem(corpora.SOURCES, "tales", [source])
    corpora.main(["--output_dir", str(tmp_path), "--kinds", "tales"])
    with gzip.open(tmp_path / "tales.jsonl.gz", "rt") as lines:
        assert [json.loads(line) for line in lines] == [{"id": "t0", "text": "a " + "a" * 300}]
    monkeypatch.setitem(corpora.SOURCES, "tales", [source._replace(files="*/other.json")])
    with pytest.raises(InputError, match="toy: expected .*/other.json as in version 1, found no such file"):
        corpora.main(["--output_dir", str(tmp_path), "--kinds", "tales"])


HALF = """
import gzip, pathlib
pathlib.Path("toy-1.tgz").write_bytes(gzip.compress(bytes(range(256)) * 99)[:200])
"""


def test_what_came_by_half_is_fetched_again(tmp_path, monkeypatch):
    """A command that fails, or is killed, after it wrote a part: the next one starts anew, and its archive is alone there."""
    source = corpora.Source("pip", "toy", "1", "*", "none", read.utf8)
    whole = "import tarfile; tarfile.open('toy-1.tgz', 'w:gz').close()"
    for code in (f"{HALF}\nraise SystemExit(1)", f"{HALF}\nimport os\nos.kill(os.getpid(), 9)", whole):
        monkeypatch.setitem(corpora.FETCH, "pip", [sys.executable, "-c", code])
        if code != whole:
            with pytest.raises(InputError, match="toy: expected to fetch it"):
                corpora.fetch(source, tmp_path)
    (make_scratch(tmp_path / corpora.ASIDE) / "toy-1.tgz").write_text("of a run that was killed")
    path = corpora.fetch(source, tmp_path)
    assert path == tmp_path / "toy/toy-1.tgz" and corpora.files_in(path, "*") == []
    assert [each.name for each in tmp_path.iterdir()] == ["toy"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["toy-1.whl", "toy-1.tgz", "toy-1.deb"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_package_that_is_not_whole_is_named(tmp_path, name, share):
    (tmp_path / "package/DEBIAN").mkdir(parents=True)
    about = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n"
    (tmp_path / "package/DEBIAN/control").write_text(about)
    (tmp_path / "package/data.txt").write_bytes(np.random.default_rng(0).bytes(20_000))
    path, kind = tmp_path / name, name.rpartition(".")[2]
    if kind == "deb":
        if not shutil.which("dpkg-deb"):
            pytest.skip("no dpkg-deb on this machine")
        subprocess.run(["dpkg-deb", "--build", tmp_path / "package", path], check=True, capture_output=True)
    else:
        made = shutil.make_archive(tmp_path / "made", "zip" if kind == "whl" else "gztar", tmp_path / "package")
        Path(made).rename(path)
    assert [len(content) for _, content in corpora.files_in(path, "*data.txt")] == [20_000]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"{name}: expected a whole package, found: .*; delete it, and the next run"):
        corpora.files_in(path, "*data.txt")


def test_kinds_that_are_not_in_training_are_read_from_tables_and_rows():
    table = b'text,label\n"One film.<br /><br />Two ",1\n"Doctor: A\n Patient: B\n",0\n'
    assert list(read.csv_column("text")([("a", table)])) == [("a:0", "One film.\nTwo"), ("a:1", "Doctor: A\nPatient: B")]
    with pytest.raises(KeyError):
        list(read.csv_column("words")([("a", table)]))
    row = json.dumps({"passage": "Context (1): Aims (2).\nContext (2): Found."}).encode()
    assert list(read.abstracts([("b", row)])) == [("b:0", "Aims (2).\nFound.")]
    assert not {source.files for kind in corpora.UNSEEN for source in corpora.SOURCES[kind]} & {
        source.files for kind in corpora.SOURCES if kind not in corpora.UNSEEN for source in corpora.SOURCES[kind]
    }


def test_the_card_names_every_source_with_its_licence():
    card = (Path(locate(BASE_MODEL)) / "README.md").read_text(encoding="utf-8")
    for kind, sources in corpora.SOURCES.items():
        for source in sources:
            assert f"| {kind} | {source.package} ({source.manager}) | {source.version} | {source.licence} |" in card


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
