"""Saving and loading a Routing."""

import io
import os
import pickle
import random
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import gatelab
from gatelab import Routing, testing

D, E = 16, 5


def made(name="topk-softmax", masked=False, **options):
    router = gatelab.create_router(name, D, E, **options)
    return testing.route(router, testing.make_batch(router, D, masked=masked))


def same(a: Routing, b: Routing) -> None:
    for field in fields(Routing):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert torch.equal(x, y), field.name
        elif isinstance(x, dict):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[key], y[key]) for key in x), field.name
        else:
            assert x == y, field.name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["topk-softmax", "expert-choice", "balanced-assignment", "remoe", "dense", "bip"])
def test_every_field_comes_back(name, masked, tmp_path):
    routing = made(name, masked)
    routing.save(tmp_path / "r.npz")
    loaded = Routing.load(tmp_path / "r.npz")
    same(routing.compact(), loaded)
    assert not any(getattr(loaded, name).requires_grad for name in ("weights", "router_logits"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


def test_a_routing_of_nothing(tmp_path):
    router = gatelab.create_router("topk-softmax", D, E)
    routing = router(torch.zeros(0, D))
    routing.save(str(tmp_path / "r.npz"))
    same(routing.compact(), Routing.load(str(tmp_path / "r.npz")))


def test_it_is_a_plain_npz(tmp_path):
    routing = made()
    routing.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:  # allow_pickle is off by default
        assert str(arrays["format"]) == "gatelab.routing"
        assert int(arrays["version"]) == 1
        assert np.array_equal(arrays["token_index"], routing.token_index.numpy())
        assert float(arrays["losses/switch"]) == float(routing.losses["switch"].detach())


def rewritten(path, **changes):
    """The archive with some arrays replaced; None leaves one out."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.array(2)}, "has version 2"),
        ({"format": np.array("other")}, "format"),
        ({"format": None}, "no saved routing"),
        ({"scores": None}, "scores missing"),
        ({"weights": np.zeros(3, np.float32)}, "weights is float32 of shape"),
        ({"choice": np.zeros(66, np.int32)}, "choice is int32"),
        ({"num_tokens": np.array(7)}, "of shape"),
        ({"token_mask": np.ones(33, np.float32)}, "token_mask is float32"),
        ({"token_index": np.full(66, 99)}, "out of range"),
        ({"token_index": np.zeros(66, np.int64)}, "does not ascend"),
        ({"expert_offsets": np.array([0, 66, 1, 2, 3, 66])}, "expert_offsets"),
        ({"router_logits": np.array([[{}]], dtype=object)}, "no saved routing"),
        ({"weights": np.zeros(66, ">f4")}, "weights.npy is >f4"),
        ({"version": np.array([1, 1])}, "no version"),
        ({"version": np.array([], np.int64)}, "no version"),
        ({"version": np.array(1.9)}, "no version"),
        ({"num_tokens": np.array([33, 33])}, "num_tokens is int64 of shape"),
        ({"num_tokens": np.array([], np.int64)}, "num_tokens is int64 of shape"),
        ({"num_tokens": np.array(33.7)}, "num_tokens is float64"),
        ({"num_tokens": np.array(np.nan)}, "num_tokens is float64"),
        ({"expert_offsets": np.array(0)}, r"expert_offsets is int64 of shape \(\)"),
        ({"token_index": np.array(0)}, r"token_index is int64 of shape \(\)"),
        ({"weights_on_input": np.array("yes")}, "weights_on_input is <U3"),
        ({"weights_on_input": np.array([])}, "weights_on_input is float64"),
        ({"losses/switch": np.array("0")}, "losses/switch is <U1"),
        ({"losses/switch": np.zeros(2, np.float32)}, r"losses/switch is float32 of shape \(2,\)"),
        ({"statistics/time": np.array("2020-01-01", "datetime64[s]")}, "statistics/time is datetime64"),
        ({"statistics/pair": np.zeros(2, [("a", "i4"), ("b", "f4")])}, "statistics/pair is "),
        ({"statistics/long": np.zeros(2, np.longdouble)}, "statistics/long is float128"),
        ({"extra": np.zeros(2)}, "'extra' is no field"),
        ({"choice": np.full(66, 1 << 60)}, "choice is out of range"),
        ({"choice": np.zeros(66, np.int64)}, "choice stands twice"),
        ({"requested": np.full(E, -1)}, "requested is less"),
        ({"requested": np.zeros(E, np.int64)}, "requested is less"),
        ({"token_mask": np.zeros(33, bool)}, "token_mask leaves out"),
        ({"weights": np.full(66, np.nan, np.float32)}, "weights are not finite"),
        ({"probabilities": np.full((33, E), np.nan, np.float32)}, "probabilities are not finite"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes, message, tmp_path):
    made().save(tmp_path / "r.npz")
    rewritten(tmp_path / "r.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Routing.load(tmp_path / "r.npz")
    assert "\n" not in str(caught.value)
    assert "r.npz" in str(caught.value)


def test_a_member_that_stands_twice_is_refused(tmp_path):
    made().save(tmp_path / "r.npz")
    with zipfile.ZipFile(tmp_path / "r.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("scores.npy", b"")
    with pytest.raises(ValueError, match=r"r\.npz is no saved routing: it holds scores twice"):
        Routing.load(tmp_path / "r.npz")


def refusal(path):
    try:
        Routing.load(path)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_whatever_byte_is_wrong_it_loads_or_is_refused_by_name(write, tmp_path):
    path, draw = tmp_path / "r.npz", random.Random(0)
    made().save(path)
    with np.load(path) as file:
        write(path, **{name: file[name] for name in file.files})
    content = path.read_bytes()
    directory = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x05\x06"))  # its last entry; then the end record
    places = [*range(60), *range(directory, len(content)), *draw.sample(range(len(content)), 300)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        said = refusal(path)
        assert said is None or (str(path) in said and "\n" not in said)


@pytest.mark.parametrize("cut", [0, 10, 500, -1])
def test_a_truncated_file_is_refused(cut, tmp_path):
    made().save(tmp_path / "r.npz")
    content = (tmp_path / "r.npz").read_bytes()
    (tmp_path / "r.npz").write_bytes(content[:cut])
    with pytest.raises(ValueError, match="no saved routing"):
        Routing.load(tmp_path / "r.npz")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "r.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no saved routing"):
        Routing.load(tmp_path / "r.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    made().save(tmp_path / "r.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "r.npz", "a") as archive:
        archive.writestr("statistics/huge.npy", header.getvalue())
    with pytest.raises(ValueError, match="statistics/huge"):
        Routing.load(tmp_path / "r.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "r.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", bytes(1 << 24))
    from gatelab.routers.recording import load_routing

    with pytest.raises(ValueError, match="unpacks to 16,777,216 bytes"):
        load_routing(tmp_path / "r.npz", max_bytes=1 << 20)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    made().save(tmp_path / "r.npz")
    before = (tmp_path / "r.npz").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        made("dense").save(tmp_path / "r.npz")
    assert (tmp_path / "r.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


def test_a_failed_save_names_the_path_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        made().save(tmp_path / "none" / "r.npz")
    assert caught.value.filename == str(tmp_path / "none" / "r.npz")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_permissions_that_others_get(umask, tmp_path):
    before = os.umask(umask)
    try:
        made().save(tmp_path / "r.npz")
    finally:
        os.umask(before)
    assert (tmp_path / "r.npz").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_come_back_as_float32(dtype, tmp_path):
    routing = made()
    statistics = {"price": torch.tensor([0.5, 1.5], dtype=dtype)}
    replace(routing, weights=routing.weights.to(dtype), statistics=statistics).save(tmp_path / "r.npz")
    loaded = Routing.load(tmp_path / "r.npz")
    assert torch.equal(loaded.weights, routing.compact().weights.to(dtype).float())
    assert torch.equal(loaded.statistics["price"], torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("on_input", [False, True])
def test_where_the_weight_multiplies_comes_back(on_input, tmp_path):
    replace(made(), weights_on_input=on_input).save(tmp_path / "r.npz")
    assert Routing.load(tmp_path / "r.npz").weights_on_input is on_input


@pytest.mark.parametrize("name", [name for name in gatelab.list_routers() if name not in ("replay", "soft-moe")])
def test_what_any_gate_makes_is_consistent(name, tmp_path):
    for masked in (False, True):
        routing = made(name, masked)
        routing.save(tmp_path / "r.npz")
        same(routing.compact(), Routing.load(tmp_path / "r.npz"))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Routing.load(tmp_path / "none.npz")
