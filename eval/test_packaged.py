"""Tests of readers that come in packages: `python eval/test_packaged.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError
from eval.reader import PACKAGED, Packaged, Reader


def write_gguf(gguf, path, width=32, words=("<unk>", "<s>", "</s>", "a", "b", "▁a")):
    """Write a random llama of one layer with a tokenizer of a few words."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    lengths = dict(context_length=64, embedding_length=width, feed_forward_length=width)
    for name, value in (lengths | dict(block_count=1, head_count=2, head_count_kv=2)).items():
        getattr(writer, f"add_{name}")(value)
    writer.add_vocab_size(len(words))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(words))
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    for name, id in dict(unk=0, bos=1, eos=2).items():
        getattr(writer, f"add_{name}_token_id")(id)
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd": (len(words), width), "output": (len(words), width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width, width) for name in square} | {f"blk.0.{n}_norm": (width,) for n in ("attn", "ffn")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packaged_model_is_put_together_from_its_parts_in_order(tmp_path, monkeypatch):
    """A llama of one layer, whole and in two halves, reads the same; swapped halves don't open."""
    gguf = pytest.importorskip("gguf")
    write_gguf(gguf, tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, part in {"whole": data, "first": data[:2000], "second": data[2000:]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('found, not imported')")
        (tmp_path / name / "part").write_bytes(part)
    readers = {"one": ["whole"], "two": ["first", "second"], "swapped": ["second", "first"], "no": ["first", "third"]}
    for name, modules in readers.items():
        monkeypatch.setitem(PACKAGED, name, Packaged(dict.fromkeys(modules, "part"), "pip install toy"))
    one, two = (Reader.load(name, 4) for name in ("one", "two"))
    assert one.nats([([1, 2], [3])], "") == two.nats([([1, 2], [3])], "")
    assert two.paths == [tmp_path / name / "part" for name in ("first", "second")]
    for name in ("swapped", "no"):
        with pytest.raises(InputError, match="pip install toy"):
            Reader.load(name, 4)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
