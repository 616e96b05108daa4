"""Third-party weight files are read without running their code, or refused with a message."""

import zipfile
from pathlib import Path

import pytest
import torch
from conftest import bring

from var_scaling.weights import WeightsError, read_file, read_tensors


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_code_in_a_file_is_reported_and_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"refused\. Besides tensors it contains \S*exec"):
        read_file(tmp_path / "evil.pth")
    torch.save({"a": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"refused\. Besides tensors it contains \S*exec"):
        read_file(tmp_path / "old.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # a whole module, not its state
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\)"):
        read_file(tmp_path / "module.pth")


def flip(path: Path) -> None:
    """Flip one bit in the bytes of a tensor."""
    with zipfile.ZipFile(path) as archive:
        place = max(archive.infolist(), key=lambda member: member.file_size).header_offset + 4096
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "truncated"),
        (flip, "does not match its checksum"),
        (lambda path: path.write_text("hello, I am no model"), "not a weights file"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "not a weights file|not named tensors"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
        (lambda path: torch.save([torch.ones(2)], path), "contains a list, not named tensors"),
        (
            lambda path: torch.save({"w": 3}, path),
            r"not all entries are named tensors: w \(a int\)",
        ),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "neither a VQVAE nor a VAR"),
    ],
    ids=["empty", "short", "bit", "text", "pickle", "gone", "folder", "list", "numbers", "other"],
)
def test_a_damaged_file_is_refused_with_the_reason(damage, message, files, tmp_path):
    damage(files[0])
    with pytest.raises(WeightsError, match=message):
        bring(tmp_path / "home", files[0])
    assert not (tmp_path / "home").exists()


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged, or not a safetensors"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_repacked_zip_gives_the_same_weights(files, tmp_path):
    """torch maps the bytes of a file: it would read compressed tensors as garbage."""
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(files[0]) as old, zipfile.ZipFile(packed, "w") as new:
        for one in old.infolist():
            how = zipfile.ZIP_DEFLATED if one.file_size < 2000 else zipfile.ZIP_STORED
            new.writestr(one.filename, old.read(one), compress_type=how)
    try:
        state = read_tensors(packed)
    except WeightsError:
        return  # torch may refuse it, but must not read wrong values
    expected = read_tensors(files[0])
    assert all(torch.equal(state[name], value) for name, value in expected.items())
