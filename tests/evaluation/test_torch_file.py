"""PyTorch's files against PyTorch itself, and what is refused without being run."""

import collections
import hashlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from genaug.evaluation.frozen import folded
from genaug.evaluation.torch_file import read_state_dict
from genaug.types import DataError, UserError


def refuses(path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        read_state_dict(path, **options)
    assert str(path) in str(caught.value)


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    """`torch.save` in one of its formats; gives the path."""
    torch = pytest.importorskip("torch", reason="PyTorch writes what is read here")

    def write(value):
        path = tmp_path / "weights.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return write


def tensors(torch):
    torch.manual_seed(0)
    base = torch.randn(4, 5, 6)
    return {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1:, ::2, 3],
        "expanded": torch.randn(3, 1).expand(3, 7),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3, dtype=torch.float16),
        "int": torch.arange(-3, 3, dtype=torch.int32),
        "short": torch.arange(-3, 3, dtype=torch.int16),
        "char": torch.arange(-3, 3, dtype=torch.int8),
        "byte": torch.arange(6, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }


def test_equals_what_torch_saved(save):
    torch = pytest.importorskip("torch")
    saved = tensors(torch)
    path = save(collections.OrderedDict(saved))
    read = read_state_dict(path)
    assert list(read.arrays) == list(saved)
    for name, tensor in saved.items():
        want = tensor.numpy()
        np.testing.assert_array_equal(read.arrays[name], want)
        assert (read.arrays[name].dtype, read.arrays[name].shape) == (want.dtype, want.shape)
        assert not read.arrays[name].flags.writeable
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_modules_state_dict_and_its_metadata(save):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
    read = read_state_dict(save(net.state_dict())).arrays
    assert {name: array.shape for name, array in read.items()} == {
        name: tuple(tensor.shape) for name, tensor in net.state_dict().items()
    }


def test_a_folded_convolution_is_both_layers(save):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4, 1e-3))
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 2)
        x = torch.randn(5, 3, 1, 1)
        want = net.eval()(x)[:, :, 0, 0].numpy()
    both = folded(read_state_dict(save(net.state_dict())).arrays, "0", "1", 1e-3)
    got = x[:, :, 0, 0].numpy() @ both["kernel"][0, 0] + both["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Shell:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def pickles(*values):
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


def legacy(*values):
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return pickles(0x1950A86A20F9469CFC6C, 1001, machine, *values)


def zipped(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return file.getvalue()


@pytest.mark.parametrize("place", ["zip", "legacy", "first pickle"])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path, place):
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    evil = {"weight": Shell(f"touch {witness}")}
    content = {"zip": zipped(pickles(evil)), "legacy": legacy(evil), "first pickle": pickles(evil)}
    path.write_bytes(content[place])
    refuses(path, r"posix\.system.*Nothing of it was run")
    assert not witness.exists()
    pickle.loads(pickles(evil))
    assert witness.exists(), "the attack does nothing, so its refusal proves nothing"


@pytest.mark.parametrize(
    "pickled, match",
    [
        (b"\x80\x02cbuiltins\neval\n.", r"builtins\.eval"),
        (b"\x80\x02cbuiltins\ngetattr\n.", r"builtins\.getattr"),
        (b"\x80\x02ctorch\nload\n.", r"torch\.load"),
        (b"\x80\x02ctorch\nBFloat16Storage\n.", r"torch\.BFloat16Storage"),
        (b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.", "str"),  # calls a storage type
        # Sets an attribute of the ordered dictionary's class.
        (b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.", "TypeError"),
    ],
)
def test_other_names_are_refused(tmp_path, pickled, match):
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(pickled))
    refuses(path, match)
    assert not hasattr(collections.OrderedDict, "a")


def test_what_is_no_state_dict_is_refused(save):
    torch = pytest.importorskip("torch")
    refuses(save(torch.nn.Linear(2, 2)), "refused")
    refuses(save({"model": {"weight": torch.zeros(2)}, "epoch": 3}), "model, epoch")
    refuses(save([torch.zeros(2)]), "no state dict|damaged")
    refuses(save({"weight": torch.zeros(2, dtype=torch.bfloat16)}), r"BFloat16Storage")


def test_a_tensor_outside_its_storage_is_refused(save):
    torch = pytest.importorskip("torch")
    path = save({"weight": torch.zeros(3, 5), "other": torch.zeros(200)})
    content = path.read_bytes()
    shape = b"K\x03K\x05\x86"
    assert content.count(shape) == 1
    path.write_bytes(content.replace(shape, b"K\x03K\xff\x86"))
    # zipfile finds the changed bytes by itself, the older format has no checksum.
    with pytest.raises(DataError, match=r"outside its 15 numbers|CRC"):
        read_state_dict(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(save, share):
    torch = pytest.importorskip("torch")
    path = save({"weight": torch.randn(500), "bias": torch.randn(20)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="damaged"):
        read_state_dict(path)


def test_the_hash_comes_first(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not weights")
    sha256 = hashlib.sha256(b"not weights").hexdigest()
    options = {"what": "the weights of a paper (from its page)"}
    refuses(path, "the weights of a paper.*0123abcd", expected_sha256_prefix="0123abcd", **options)
    refuses(path, "no PyTorch file", expected_sha256_prefix=sha256[:8].upper(), **options)
    refuses(tmp_path / "nowhere.pth", r"cannot be read.*from its page", **options)
