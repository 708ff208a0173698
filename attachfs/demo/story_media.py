"""The story's pictures and footage, drawn with Pillow: a container, its seal, the dock, a door and its film.

Nothing here was photographed. Pictures carry EXIF data like a camera's.
"""

import functools
import io
import random
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

PHOTO = (960, 640)
FRAME = (1280, 720)
FOOTAGE_SIZE = 64 << 20
_FPS = 5
_ALIGN = 2
# When somebody is at the door, in seconds from the footage's start: frames differ; else one a second does.
_VISIT = range(20, 38)

_Colour = tuple[int, int, int]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _canvas(size: tuple[int, int], top: _Colour, bottom: _Colour) -> Image.Image:
    """Return a vertical gradient."""
    mask = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), mask)


def _grain(picture: Image.Image, strength: float) -> Image.Image:
    """Return a picture with a sensor's noise, always the same noise."""
    width, height = picture.size
    noise = random.Random(width * height).randbytes(width * height // 4)
    grey = Image.frombytes("L", (width // 2, height // 2), noise).resize(picture.size)
    return Image.blend(picture, grey.convert("RGB"), strength)


def _jpeg(picture: Image.Image, caption: str, taken: str) -> bytes:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    draw.rectangle((0, height - 44, width, height), fill=(16, 18, 22))
    draw.text((16, height - 36), caption, font=_font(22), fill=(240, 240, 240))
    exif = Image.Exif()
    exif[0x010E] = caption.encode("ascii", "replace").decode()  # ImageDescription
    exif[0x010F] = "attachfs demo"  # Make
    exif[0x0110] = "Drawing board 1"  # Model
    exif[0x0132] = datetime.fromisoformat(taken).strftime("%Y:%m:%d %H:%M:%S")  # DateTime
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88, exif=exif)
    return out.getvalue()


def container(number: str, caption: str, taken: str, colour: _Colour = (150, 52, 38), tilt: int = 0) -> bytes:
    """Return a photo of a shipping container."""
    picture = _canvas(PHOTO, (146, 180, 214), (222, 226, 226))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 470, 960, 640), fill=(92, 94, 96))
    for x in range(-200, 1000, 160):
        draw.line((x, 640, x + 120, 470), fill=(206, 190, 90), width=3)
    left, top, right, bottom = 90 + tilt, 150, 700 + tilt, 500
    draw.rectangle((left, top, right, bottom), fill=colour)
    dark = (colour[0] * 2 // 3, colour[1] * 2 // 3, colour[2] * 2 // 3)
    for x in range(left + 12, right - 6, 18):
        draw.line((x, top + 14, x, bottom - 14), fill=dark, width=6)
    end = [(right, top), (right + 150, top + 36), (right + 150, bottom - 26), (right, bottom)]
    draw.polygon(end, fill=dark, outline=(30, 30, 30))
    for step in (30, 60, 95, 125):
        draw.line(
            (right + step, top + 20 + step // 5, right + step, bottom - 16 - step // 6),
            fill=(190, 190, 186),
            width=5,
        )
    draw.rectangle((left, top, right, bottom), outline=(30, 30, 30), width=4)
    draw.rectangle((left + 40, top + 24, left + 400, top + 84), fill=colour)
    draw.text((left + 48, top + 28), number, font=_font(46), fill=(245, 245, 240))
    draw.text((left + 48, bottom - 70), "22G1   MAX. GROSS 30 480 KG", font=_font(24), fill=(235, 235, 230))
    return _jpeg(_grain(picture, 0.09), caption, taken)


def seal(number: str, caption: str, taken: str, body: _Colour = (226, 178, 28)) -> bytes:
    """Return a close photo of a bolt seal on a container's locking bar."""
    picture = _canvas(PHOTO, (122, 44, 34), (84, 28, 22))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((180, 0, 250, 600), fill=(168, 170, 170), outline=(70, 70, 70), width=4)
    draw.rectangle((150, 240, 700, 300), fill=(150, 152, 152), outline=(60, 60, 60), width=4)
    draw.rectangle((470, 120, 500, 500), fill=(196, 198, 200), outline=(70, 70, 70), width=3)
    draw.ellipse((440, 90, 530, 150), fill=(206, 208, 210), outline=(60, 60, 60), width=3)
    draw.rounded_rectangle((410, 330, 560, 560), 26, fill=body, outline=(60, 50, 10), width=4)
    for position, part in enumerate((number[:3], number[3:6], number[6:])):
        draw.text((440, 362 + 58 * position), part, font=_font(46), fill=(24, 20, 8))
    return _jpeg(_grain(picture, 0.11), caption, taken)


def dock(caption: str, taken: str, ship: _Colour = (32, 60, 98), stacks: int = 9) -> bytes:
    """Return a photo of a ship at a container terminal."""
    picture = _canvas(PHOTO, (236, 196, 150), (250, 232, 206))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 430, 960, 640), fill=(58, 92, 108))
    for y in range(440, 600, 16):
        draw.line((random.Random(y).randrange(400), y, 560 + y // 2, y), fill=(84, 122, 136), width=2)
    draw.polygon([(120, 380), (880, 380), (820, 480), (180, 480)], fill=ship)
    draw.rectangle((700, 250, 800, 380), fill=(238, 238, 232))
    draw.text((210, 400), "NORTHERN TERN", font=_font(40), fill=(236, 236, 236))
    paint = ((150, 52, 38), (36, 96, 120), (196, 150, 60), (70, 110, 70), (110, 110, 116))
    chance = random.Random(stacks)
    for column in range(stacks):
        for row in range(chance.randrange(2, 5)):
            x, y = 150 + 58 * column, 352 - 28 * row
            draw.rectangle((x, y, x + 54, y + 26), fill=chance.choice(paint), outline=(40, 40, 40))
    for x in (90, 420, 640):
        for part in (
            (x, 60, x, 430),
            (x + 70, 60, x + 70, 430),
            (x - 60, 120, x + 240, 120),
            (x + 35, 20, x + 240, 120),
        ):
            draw.line(part, fill=(70, 84, 100), width=9)
    return _jpeg(_grain(picture, 0.08), caption, taken)


def papers(caption: str, taken: str) -> bytes:
    """Return a photo of an opened crate with its cargo."""
    picture = _canvas(PHOTO, (70, 66, 62), (112, 104, 94))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(140, 250), (820, 250), (900, 590), (60, 590)], fill=(176, 132, 82), outline=(84, 58, 30))
    for x in range(180, 800, 105):
        for y in (290, 390, 490):
            draw.rounded_rectangle(
                (x, y, x + 86, y + 78), 8, fill=(214, 216, 218), outline=(80, 82, 84), width=3
            )
            draw.ellipse((x + 28, y + 24, x + 58, y + 54), fill=(44, 62, 80))
    return _jpeg(_grain(picture, 0.1), caption, taken)


@functools.cache
def _gate() -> Image.Image:
    """Return the empty scene that the door camera sees."""
    picture = _canvas(FRAME, (74, 78, 84), (120, 120, 116))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(0, 720), (1280, 720), (900, 480), (380, 480)], fill=(96, 92, 88))
    draw.rectangle((470, 130, 810, 500), fill=(52, 60, 72), outline=(24, 26, 30), width=8)
    draw.rectangle((500, 160, 780, 300), fill=(112, 138, 150), outline=(24, 26, 30), width=4)
    draw.ellipse((760, 330, 786, 356), fill=(206, 190, 120))
    draw.rectangle((840, 260, 890, 330), fill=(20, 22, 24))
    draw.text((548, 80), "NORTH GATE", font=_font(36), fill=(228, 228, 220))
    return _grain(picture, 0.16)


def gate(moment: datetime, walked: float | None) -> Image.Image:
    """Return what the door camera sees; `walked` is how far somebody is across the picture, 0 to 1."""
    picture = _gate().copy()
    draw = ImageDraw.Draw(picture)
    if walked is not None:
        x = int(60 + 1100 * walked)
        y = 300 + int(8 * (walked * 40 % 2))
        draw.ellipse((x - 34, y - 40, x + 34, y + 34), fill=(196, 158, 130))
        draw.rounded_rectangle((x - 58, y + 34, x + 58, y + 240), 30, fill=(226, 120, 24))
        draw.rectangle((x - 58, y + 110, x + 58, y + 130), fill=(238, 236, 160))
        draw.rectangle((x - 44, y + 236, x - 8, y + 380), fill=(36, 40, 56))
        draw.rectangle((x + 8, y + 236, x + 44, y + 380), fill=(36, 40, 56))
    draw.rectangle((0, 0, 520, 44), fill=(0, 0, 0))
    clock = f"CAM-07  {moment:%Y-%m-%d %H:%M:%S}Z"
    draw.text((12, 6), clock, font=_font(28), fill=(120, 255, 120))
    return picture


def still(taken: str, walked: float) -> bytes:
    """Return a picture that the door camera took when something moved."""
    moment = datetime.fromisoformat(taken)
    return _jpeg(gate(moment, walked), f"Motion, zone 2, {moment:%H:%M:%S}", taken)


def write_footage(path: Path, start: str) -> None:
    """Write a film of exactly `FOOTAGE_SIZE` bytes: Motion JPEG in AVI, a clock burned in, padded by JUNK."""
    moment = datetime.fromisoformat(start).astimezone(UTC)
    with path.open("wb") as file:
        file.write(bytes(_header_size()))
        sizes: list[int] = []
        # What is still to come after the frames: the index, and JUNK to the exact size.
        while file.tell() + 16 * len(sizes) + 16 < FOOTAGE_SIZE - (256 << 10):
            sizes.append(_write_frame(file, _frame(moment, len(sizes))))
        end_of_frames = file.tell()
        file.write(struct.pack("<4sI", b"idx1", 16 * len(sizes)))
        offset = 4
        for size in sizes:
            file.write(struct.pack("<4sIII", b"00dc", 0x10, offset, size))
            offset += 8 + size + size % _ALIGN
        padding = FOOTAGE_SIZE - file.tell() - 8
        file.write(struct.pack("<4sI", b"JUNK", padding) + bytes(padding))
        file.seek(0)
        file.write(_header(len(sizes), max(sizes), end_of_frames))


_frames: dict[tuple[datetime, int], bytes] = {}


def _frame(start: datetime, number: int) -> bytes:
    second, part = divmod(number, _FPS)
    walked = None
    if second in _VISIT:
        walked = (second - _VISIT.start + part / _FPS) / len(_VISIT)
    else:
        part = 0
    key = (start, second * _FPS + part)
    if key not in _frames:
        _frames.clear()  # only the last one is ever asked for again
        out = io.BytesIO()
        gate(start + timedelta(seconds=second), walked).save(out, "JPEG", quality=78)
        _frames[key] = out.getvalue()
    return _frames[key]


def _write_frame(file: BinaryIO, jpeg: bytes) -> int:
    file.write(struct.pack("<4sI", b"00dc", len(jpeg)) + jpeg + bytes(len(jpeg) % _ALIGN))
    return len(jpeg)


def _header_size() -> int:
    return len(_header(0, 0, 0))


def _header(frames: int, largest: int, end_of_frames: int) -> bytes:
    width, height = FRAME
    main = struct.pack(
        "<14I", 1_000_000 // _FPS, largest * _FPS, 0, 0x10, frames, 0, 1, largest, width, height, 0, 0, 0, 0
    )
    stream = struct.pack(
        "<4s4sIHHIIIIIIIIHHHH",
        *(b"vids", b"MJPG", 0, 0, 0, 0, 1, _FPS, 0, frames, largest, 10_000, 0, 0, 0, width, height),
    )
    picture = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    strl = b"strl" + _chunk(b"strh", stream) + _chunk(b"strf", picture)
    hdrl = b"hdrl" + _chunk(b"avih", main) + _chunk(b"LIST", strl)
    head = struct.pack("<4sI4s", b"RIFF", FOOTAGE_SIZE - 8, b"AVI ") + _chunk(b"LIST", hdrl)
    movi_size = max(0, end_of_frames - len(head) - 8)
    return head + struct.pack("<4sI4s", b"LIST", movi_size, b"movi")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sI", name, len(data)) + data
