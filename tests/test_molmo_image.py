"""Pictures: reading any file, and the golden token counts, tilings and indices of spec molmo §3."""

import io
import warnings

import numpy as np
import pytest

from models.config import VisionConfig
from models.errors import UserError
from models.molmo import decode, image
from models.molmo.resize import resize

# width, height, most crops: tiling, crops, tokens (spec molmo §3.9)
GOLDEN = [
    ((224, 224, 12), (1, 1), 2, 316),
    ((336, 336, 12), (1, 1), 2, 316),
    ((560, 336, 12), (1, 2), 3, 412),
    ((336, 560, 12), (2, 1), 3, 420),
    ((640, 480, 12), (2, 3), 7, 740),
    ((480, 640, 12), (3, 2), 7, 748),
    ((1024, 768, 12), (3, 4), 13, 1196),
    ((1920, 1080, 12), (3, 4), 13, 1196),
    ((4000, 3000, 12), (3, 4), 13, 1196),
    ((3000, 400, 12), (1, 11), 12, 1276),
    ((100, 3000, 12), (1, 1), 2, 316),
    ((224, 224, 36), (1, 1), 2, 316),
    ((560, 336, 36), (1, 2), 3, 412),
    ((640, 480, 36), (2, 3), 7, 740),
    ((1024, 768, 36), (3, 5), 16, 1420),
    ((1920, 1080, 36), (4, 8), 33, 2644),
    ((4000, 3000, 36), (5, 7), 36, 2844),
    ((3000, 400, 36), (2, 13), 27, 2340),
    ((100, 3000, 36), (1, 1), 2, 316),
]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("size, tiling, crops, tokens", GOLDEN)
def test_layouts_are_those_of_the_golden_table(size, tiling, crops, tokens):
    width, height, most = size
    found = image.layout(height, width, most)
    assert (found.tiling, found.crops, len(found.tokens)) == (tiling, crops, tokens)


def test_the_longest_layouts():
    assert len(image.layout(2800, 336, 12).tokens) == 1460
    assert len(image.layout(8176, 300, 36).tokens) == 3956


def test_a_short_side_is_one_crop_only_where_asked_for():
    assert image.choose_tiling(3000, 112, 12) == (12, 1)
    assert image.choose_tiling(3000, 111, 12) == (1, 1)
    assert image.choose_tiling(3000, 111, 12, VisionConfig()) == (12, 1)


def test_the_worked_example():
    found = image.tokenize(noise(480, 640))
    assert found.crops.shape == (7, 576, 588) and found.crops.dtype == np.uint8
    counts = [int((found.tokens == 152064 + i).sum()) for i in range(4)]
    assert counts == [2, 2, 704, 32] and len(found.tokens) == 740
    assert image.scaled_size(480, 640, 560, 784) == (560, 746)
    assert image.scaled_size(480, 640, 336, 336) == (251, 336)
    # Places after a BOS token, one more than in `tokens`.
    low, high = found.patch_at[:144] + 1, found.patch_at[144:] + 1
    assert all(low[12 * a + b] == 2 + 13 * a + b for a in range(12) for b in range(12))
    assert all(high[28 * y + x] == 160 + 29 * y + x for y in range(20) for x in range(28))
    assert (low[-1], high[-1]) == (156, 738)
    assert np.bincount(found.pooling[144:, 0] // 576, minlength=7)[1:].tolist() == [100, 80, 100, 100, 80, 100]
    classes = [np.bincount(row, minlength=3)[[2, 1, 0]].tolist() for row in image.legacy_padding(found.padding)]
    edge, inner = [24, 24, 528], [0, 0, 576]
    assert classes == [edge, inner, edge, edge, inner, edge, [0, 576, 0]]


def closed_form(height, width, most):
    """The patches of every token by the formulas of spec molmo §3.6, cell by cell."""
    r, c = image.choose_tiling(height, width, most)
    rows, columns = 8 * r + 4, 8 * c + 4
    cells = [(0, a, b) for a in range(12) for b in range(12)]
    for y in range(rows):
        for x in range(columns):
            i, j = min(max((y - 2) // 8, 0), r - 1), min(max((x - 2) // 8, 0), c - 1)
            cells.append((1 + i * c + j, y - 8 * i, x - 8 * j))
    places = [1 + 13 * a + b for a in range(12) for b in range(12)]
    places += [159 + y * (columns + 1) + x for y in range(rows) for x in range(columns)]
    patches = [[576 * crop + 24 * (2 * a + dy) + 2 * b + dx for dy in (0, 1) for dx in (0, 1)] for crop, a, b in cells]
    return np.array(places), np.array(patches), 160 + rows * (columns + 1), (r, c)


def test_3000_sizes_have_the_layout_of_the_closed_form():
    random = np.random.default_rng(3)
    sides = np.exp(random.uniform(0, np.log(6000), (3000, 2))).astype(int)
    known = {}
    for number, (height, width) in enumerate(sides.tolist()):
        most = (4, 12, 36)[number % 3]
        tiling = image.choose_tiling(height, width, most)
        if tiling not in known:  # the layout depends on the size by the tiling alone
            known[tiling] = image.layout(height, width, most)
            places, patches, length, _ = closed_form(height, width, most)
            np.testing.assert_array_equal(known[tiling].patch_at, places)
            np.testing.assert_array_equal(known[tiling].pooling, patches)
            assert len(known[tiling].tokens) == length
        assert tiling[0] * tiling[1] <= most
        new = image.scaled_size(height, width, 224 * tiling[0] + 112, 224 * tiling[1] + 112)
        assert 1 <= new[0] <= 224 * tiling[0] + 112 and 1 <= new[1] <= 224 * tiling[1] + 112
    assert len(known) > 60


def test_each_token_reads_the_pixels_at_its_place():
    """A canvas whose pixels say where they are: a token's patches are those of its cell of the whole canvas."""
    vision = VisionConfig(image=24, patch=2, margin=2, max_crops=6)
    canvas = np.zeros((8 * 2 * 2 + 8, 8 * 2 * 3 + 8, 3), np.uint8)  # 2 × 3 crops of 24, which share 8 pixels
    canvas[..., 0], canvas[..., 1] = np.arange(len(canvas))[:, None], np.arange(canvas.shape[1])
    found = image.tokenize(canvas, 6, vision)
    assert found.tiling == (2, 3)
    first = found.crops.reshape(-1, vision.patch**2, 3)[:, 0]  # the first pixel of every patch
    cells = first[found.pooling[36:]]  # behind the 6 × 6 tokens of the small copy
    rows, columns = np.divmod(np.arange(10 * 14), 14)
    for number, (dy, dx) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        np.testing.assert_array_equal(cells[:, number, 0], 4 * rows + 2 * dy)
        np.testing.assert_array_equal(cells[:, number, 1], 4 * columns + 2 * dx)


def test_odd_grids_pool_with_absent_patches():
    vision = VisionConfig("siglip", image=378, width=1152, ffn=4304, layers=27, features=(-3, -9))
    found = image.layout(700, 900, 8, vision)
    assert (found.pooling[:196] == -1).sum() == 2 * 27 + 1  # a row and a column of the 28 × 28 that 27 × 27 fill
    patches = found.pooling[found.pooling >= 0]
    assert len(np.unique(patches)) == len(patches)
    assert len(found.patch_at) == len(found.pooling)


def test_padding_is_black_and_known():
    found = image.tokenize(np.full((100, 310, 3), 255, np.uint8), 1)
    whole, classes = found.crops[0].reshape(576, 196, 3), found.padding[0]
    assert (whole[classes == image.PADDED] == 0).all() and (whole[classes == image.REAL] == 255).all()
    partly = whole[classes == image.PARTIAL]
    assert len(partly) and all(0 < patch.mean() < 255 for patch in partly)


def triangle(pixels, new):
    """Rows resampled with a triangle filter that widens where they shrink; float64, without rounding."""
    old = len(pixels)
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / width)
    return np.tensordot(weights / weights.sum(1, keepdims=True), pixels, 1)


@pytest.mark.parametrize("size", [(31, 50), (90, 20), (64, 64)])
def test_resizing_is_bilinear_with_a_widening_filter(size):
    pixels = noise(64, 48)
    reference = triangle(triangle(pixels.astype(float), size[0]).transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    assert np.abs(resize(pixels, *size, "clip") - reference).max() <= 1.01


def test_siglip_interpolates_between_neighbours_only():
    pixels = noise(40, 40)
    out = resize(pixels, 20, 20, "siglip")  # centres of pairs
    pairs = pixels.reshape(20, 2, 20, 2, 3).astype(float).mean((1, 3))
    assert np.abs(out - pairs).max() <= 0.51
    for encoder in ("siglip", "dino", "metaclip"):
        flat = resize(np.full((13, 29, 3), 77, np.uint8), 50, 20, encoder)
        assert flat.shape == (50, 20, 3) and (flat == 77).all()


def test_pictures_are_read_as_a_viewer_shows_them():
    from PIL import Image

    pixels = noise(6, 9)
    picture = Image.fromarray(pixels)
    np.testing.assert_array_equal(decode.read(encoded(picture)), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    turned = encoded(picture, exif=exif.tobytes())
    np.testing.assert_array_equal(decode.read(turned), np.rot90(pixels, -1))
    assert decode.size_of(turned) == (9, 6)
    clear = Image.fromarray(np.dstack([pixels, np.zeros((6, 9), np.uint8)]))
    assert (decode.read(encoded(clear)) == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert decode.read(encoded(palette)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert decode.read(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    deep = Image.fromarray((np.arange(4, dtype=np.uint16) * 21845).reshape(1, 4))
    assert decode.read(encoded(deep))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert decode.read(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"))[0, 0].tolist()[1:] == [0, 0]
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode.read(moving)[0, 0].tolist() == [255, 0, 0]
    assert decode.read(encoded(Image.new("1", (2, 2), 1))).tolist() == [[[255] * 3] * 2] * 2
    np.testing.assert_array_equal(decode.read(pixels[..., 0])[..., 2], pixels[..., 0])


def test_a_truncated_picture_gives_what_it_has():
    from PIL import Image, ImageFile

    whole = encoded(Image.fromarray(np.full((200, 200, 3), 90, np.uint8)), "JPEG")
    cut = decode.read(whole[: len(whole) * 2 // 3])
    assert cut.shape == (200, 200, 3) and abs(int(cut[0, 0, 0]) - 90) < 3
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    "source, why",
    [
        ("missing.png", "there is no such file"),
        ("/", "it is not a file"),
        (b"GIF89a nonsense", "it is not a picture|cannot be decoded|."),
        (b"", "it is not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "."),
        (np.zeros((4, 4, 3), np.float32), r"an array must be uint8 \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "its size is 4 × 0"),
    ],
)
def test_bad_pictures_are_one_line(source, why):
    with pytest.raises(UserError, match=why) as error:
        image.tokenize(source)
    assert "\n" not in str(error.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    from PIL import Image

    bomb = encoded(Image.new("1", (10_000, 10_000)))  # a few kilobytes that would be 300 MB
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="10,000 × 10,000 is more than 89,478,485 pixels"):
            image.tokenize(bomb)
    huge = encoded(Image.new("1", (20_000, 10_000)))  # over Pillow's own limit
    with pytest.raises(UserError, match="more than 89,478,485 pixels"):
        decode.size_of(huge)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes_are_pictures(size):
    found = image.tokenize(np.full((*size, 3), 200, np.uint8))
    assert found.crops.max() == 200
    assert len(found.crops) == found.layout.crops


def test_max_crops_below_one_is_one_line():
    with pytest.raises(UserError, match="max_crops 0 must be at least 1"):
        image.tokenize(noise(4, 4), 0)


def test_every_real_picture_is_read(shared_data):
    paths = sorted((shared_data / "vision").rglob("*.jpg"))
    assert len(paths) > 200
    for number, path in enumerate(paths):
        height, width = decode.size_of(path)
        if number % 12:  # the sizes of all, the pixels of one in twelve
            assert len(image.layout(height, width).tokens) >= 316
            continue
        found = image.tokenize(path)
        assert len(found.tokens) == len(image.layout(height, width).tokens)
        assert found.crops.shape == (found.layout.crops, 576, 588) and found.crops.max() > 50
