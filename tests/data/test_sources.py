"""Sources: files as users have them, and what is said about the bad ones."""

import zlib

import numpy as np
import pytest
from PIL import Image

from genaug.data import Data, catalogue
from genaug.data import sources as sources_module
from genaug.data.folder import decode
from genaug.data.sources import read
from genaug.types import DataError, UserError


def write(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def gray(value, size=(8, 6)):
    return np.full(size, value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            write(root / name / f"{i}.png", gray(10 * label + i))
    return root


def fails(config, *parts, error=DataError, code=3):
    with pytest.raises(error) as caught:
        read(config)
    assert caught.value.exit_code == code
    for part in parts:
        assert str(part) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_in_sorted_order(folder):
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "cat" / "._0.png").write_bytes(b"x")
    (folder / ".cache").mkdir()
    raw = read(Data(source=str(folder)))
    assert raw.images.shape == (8, 8, 6, 1)
    assert raw.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert raw.labels.tolist() == [0] * 4 + [1] * 4
    assert raw.class_names == ("cat", "dog")
    assert raw.preset_test is None


def test_every_kind_of_file_has_its_rule(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8) + np.array([200, 100, 0], np.uint8)
    rgba = np.dstack([rgb, np.full((4, 6), 51, np.uint8)])
    assert (decode(write(tmp_path / "a.png", rgb), 255) == rgb).all()
    over = np.rint(np.array([200, 100, 0]) * 0.2 + 0.8 * 100)
    assert (decode(write(tmp_path / "b.png", rgba), 100) == over).all()
    palette = write(tmp_path / "c.png", rgb, "P")
    assert decode(palette, 255).shape == (4, 6, 3)
    assert decode(write(tmp_path / "d.jpg", rgb, "CMYK"), 255).shape == (4, 6, 3)
    deep = write(tmp_path / "e.png", np.array([[0, 257, 65535]], np.uint16))
    assert decode(deep, 255).tolist() == [[[0], [1], [255]]]
    assert decode(write(tmp_path / "f.png", gray(255), "1"), 0).tolist()[0][0] == [255]
    clear = Image.fromarray(gray(0)).convert("P")
    clear.save(tmp_path / "g.png", transparency=0)
    assert (decode(tmp_path / "g.png", 77) == 77).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.hstack([gray(0, (8, 8)), gray(255, (8, 8))])
    turned = decode(write(tmp_path / "h.jpg", half, exif=exif), 255)
    assert turned.shape == (16, 8, 1)
    assert turned[0, 4, 0] < 20
    assert turned[-1, 4, 0] > 235


def test_sizes_that_differ(folder):
    write(folder / "dog" / "9.png", gray(1, (10, 12)))
    fails(Data(source=str(folder)), "8 of 8x6", "1 of 10x12", "9.png", "--data.image-size")
    assert read(Data(source=str(folder), image_size=5)).images.shape == (9, 5, 5, 1)


def test_resize_scales_the_shortest_side_and_crops_the_centre(tmp_path):
    bars = np.hstack([gray(0, (8, 8)), gray(128, (8, 8)), gray(255, (8, 8))])
    write(tmp_path / "r" / "a" / "0.png", bars)
    image = read(Data(source=str(tmp_path / "r"), image_size=4)).images[0]
    assert image.shape == (4, 4, 1)
    assert (abs(image[:, 1:3].astype(int) - 128) < 10).all()


def test_channels_that_differ(folder):
    write(folder / "dog" / "9.png", np.zeros((8, 6, 3), np.uint8))
    fails(Data(source=str(folder)), "8 with 1", "1 with 3", "dog/9.png", "--data.channels 3")
    assert read(Data(source=str(folder), channels=3)).images.shape == (9, 8, 6, 3)
    assert read(Data(source=str(folder), channels=1)).images.shape == (9, 8, 6, 1)


@pytest.mark.parametrize("bad", ["truncated", "text", "bomb"])
def test_bad_image(folder, bad, monkeypatch):
    path = folder / "dog" / "2.png"
    if bad == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8)
        write(path, noise)
        path.write_bytes(path.read_bytes()[:70])
    elif bad == "text":
        path.write_text("not an image")
    else:
        write(path, gray(0, (50, 30)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    fails(Data(source=str(folder)), path, "--data.skip-bad")
    raw = read(Data(source=str(folder), skip_bad=True))
    assert raw.ids.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert raw.labels.tolist() == [0] * 4 + [1] * 3


def test_all_images_bad(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_text("no")
    fails(Data(source=str(tmp_path), skip_bad=True), "no readable image")


def test_folder_layouts(folder, tmp_path):
    (folder / "eel").mkdir()
    fails(Data(source=str(folder)), "'eel'", "no images")
    (folder / "eel").rmdir()
    (folder / "CAT").mkdir()
    fails(Data(source=str(folder)), "'CAT'", "'cat'", "spelling")
    (tmp_path / "empty").mkdir()
    fails(Data(source=str(tmp_path / "empty")), "no class folders", "no images")


def test_a_folder_of_images_is_one_class(tmp_path):
    for i in range(3):
        write(tmp_path / "flat" / f"{i}.png", gray(i))
    found = read(Data(source=str(tmp_path / "flat")))
    assert found.class_names == ("image",)
    np.testing.assert_array_equal(found.labels, [0, 0, 0])


def test_links_that_leave_the_folder(folder, tmp_path):
    outside = write(tmp_path / "secret.png", gray(1))
    (folder / "cat" / "z.png").symlink_to(outside)
    fails(Data(source=str(folder)), "z.png", "symbolic link")


def test_preset_split(folder):
    root = folder.parent / "split"
    root.mkdir()
    folder.rename(root / "train")
    write(root / "test" / "dog" / "0.png", gray(99))
    raw = read(Data(source=str(root)))
    assert raw.preset_test is not None
    assert np.flatnonzero(raw.preset_test).tolist() == [8]
    assert raw.labels[8] == 1
    write(root / "test" / "eel" / "0.png", gray(98))
    fails(Data(source=str(root)), "'eel'", "training")
    (root / "valid").mkdir()
    fails(Data(source=str(root)), "valid", "train/")


IMAGES = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return Data(source=str(tmp_path / "set.npz"))


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels"), ("x", "y")])
def test_npz(tmp_path, keys):
    raw = read(npz(tmp_path, **dict(zip(keys, (IMAGES, LABELS), strict=True))))
    assert raw.images.shape == (6, 4, 5, 1)
    assert (raw.images[..., 0] == IMAGES).all()
    assert raw.labels.tolist() == LABELS.tolist()
    assert raw.class_names == ("0", "1", "2")


@pytest.mark.parametrize("key", ["image", "x", "arr_0"])
def test_npz_of_images_alone_is_one_class(tmp_path, key):
    raw = read(npz(tmp_path, **{key: IMAGES}))
    assert raw.class_names == ("image",)
    np.testing.assert_array_equal(raw.labels, np.zeros(len(IMAGES)))
    fails(npz(tmp_path, **{key: np.uint8(3)}), "shape ()", "[n, h, w]")
    fails(npz(tmp_path, other=IMAGES), "has the arrays other")


def test_npz_as_keras_writes_it(tmp_path):
    test = np.full((2, 4, 5), 200, np.uint8)
    raw = read(
        npz(tmp_path, x_train=IMAGES, y_train=LABELS[:, None], x_test=test, y_test=LABELS[:2])
    )
    assert raw.preset_test is not None
    assert raw.preset_test.tolist() == [False] * 6 + [True] * 2


def test_npz_floats_go_through_the_declared_range(tmp_path):
    floats = np.zeros((2, 2, 2), np.float32)
    floats[0, 0] = [-1, 1]
    config = npz(tmp_path, image=floats, label=[0, 1])
    fails(config, "from -1 to 1", "0 to 1", "--data.float-range")
    raw = read(Data(source=config.source, float_range=(-1.0, 1.0)))
    assert raw.images[0, :, :, 0].tolist() == [[0, 255], [128, 128]]
    floats[1, 0, 0] = np.nan
    fails(npz(tmp_path, image=floats, label=[0, 1]), "1 values are NaN", "image 1")


def test_npz_strings(tmp_path):
    raw = read(npz(tmp_path, image=IMAGES, label=np.array(["b", "a", "c", "b", "a", "c"])))
    assert raw.class_names == ("a", "b", "c")
    assert raw.labels.tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(
    "arrays, parts",
    [
        ({"image": IMAGES, "label": LABELS.astype(object)}, ["pickled", "never read"]),
        ({"picture": IMAGES}, ["picture", "image/label"]),
        ({"image": np.zeros((6, 3, 8, 8), np.uint8), "label": LABELS}, ["channel-first"]),
        ({"image": IMAGES.astype(int) + 200, "label": LABELS}, ["200 to 319", "0 to 255"]),
        ({"image": IMAGES, "label": LABELS - 1}, ["label[0] is -1", "0 to 1"]),
        ({"image": IMAGES, "label": LABELS + 1}, ["1-based"]),
        (
            {"image": IMAGES, "label": LABELS, "class_names": ["a", "b"]},
            ["label[2] is 2", "0 to 1"],
        ),
        ({"image": IMAGES, "label": LABELS.astype(float)}, ["float64", "integers"]),
        ({"image": IMAGES, "label": np.eye(6)}, ["(6, 6)", "one-hot"]),
        ({"image": IMAGES, "label": LABELS[:5]}, ["6 image but 5 label"]),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, ["(0, 4, 5, 1)"]),
    ],
)
def test_npz_errors(tmp_path, arrays, parts):
    fails(npz(tmp_path, **arrays), *parts)


def test_npz_damaged(tmp_path):
    config = npz(tmp_path, image=IMAGES, label=LABELS)
    (tmp_path / "set.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:100])
    fails(config, "set.npz", "cannot read")
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "set.npz")
    fails(config, "set.npz", "single array")


def test_npz_alpha_is_composited(tmp_path):
    rgba = np.zeros((2, 4, 4, 4), np.uint8)
    config = npz(tmp_path, image=rgba, label=[0, 1])
    assert (read(Data(source=config.source, background=9)).images == 9).all()


def test_mnist5k_is_what_it_says():
    raw = read(Data())
    assert raw.images.shape == (5000, 28, 28, 1)
    assert np.bincount(raw.labels).tolist() == [500] * 10
    assert raw.images.max() == 255
    assert len({zlib.crc32(image.tobytes()) for image in raw.images}) > 4990


def test_mnist5k_without_its_package(monkeypatch):
    monkeypatch.setattr(sources_module, "package_file", lambda *_: None)
    fails(Data(), 'pip install "genaug[demo]"')


def test_digits_in_other_shapes():
    assert read(Data(source="digits")).images.shape == (1797, 8, 8, 1)
    raw = read(Data(source="digits", image_size=12, channels=3))
    assert raw.images.shape == (1797, 12, 12, 3)


def test_unknown_sources(tmp_path):
    fails(Data(source="mnist5"), "did you mean 'mnist5k'", "tfds:NAME", "prepared directory")
    (tmp_path / "a.csv").write_text("1")
    fails(Data(source=str(tmp_path / "a.csv")), "not an .npz")


def test_tfds_that_cannot_be_had(monkeypatch, tmp_path):
    def no_network():
        raise ConnectionError("no network (test)")

    monkeypatch.setattr(sources_module, "_require_network", no_network)
    fails(Data(source="tfds:mnist"), "tfds:mnist", "no network", "download_and_prepare")
    fails(Data(source="tfds:nosuchthing"), "tfds:nosuchthing", "not found")


@pytest.mark.parametrize(
    "config, part",
    [
        (Data(channels=2), "--data.channels is 2"),
        (Data(image_size=0), "--data.image-size is 0"),
        (Data(background=300), "--data.background is 300"),
        (Data(float_range=(1.0, 0.0)), "--data.float-range"),
    ],
)
def test_config_that_cannot_be(config, part):
    fails(config, part, error=UserError, code=2)


def test_catalogue_says_how_to_get_what_is_missing(monkeypatch):
    entries = {entry.name: entry for entry in catalogue()}
    assert entries["mnist5k"].found
    assert "5,000" in entries["mnist5k"].size
    assert {entry.kind for entry in catalogue()} >= {"built-in", "form"}
    monkeypatch.setattr("genaug.data.listing.package_file", lambda *_: None)
    missing = {entry.name: entry for entry in catalogue()}["mnist5k"]
    assert not missing.found
    assert missing.how == 'pip install "genaug[demo]"'
