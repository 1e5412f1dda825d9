# ruff: noqa: N803, SIM108
"""One launch that resizes a batch of images of any sizes: crop, colour order, mean and std, cast, layout."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FIELDS = 12
"""Numbers that describe one output image: where its source lies, the box in it, the place it goes to."""


@triton.jit
def _pixels(place, row, column, sc, sh, sw, channel, ok):
    return tl.load(place + channel * sc + row * sh + column * sw, mask=ok, other=0).to(tl.float32)


@triton.jit
def _weight(tap, centre, scale, size):
    """The triangle filter's weight of a source pixel; none outside the box."""
    distance = tl.abs((tap.to(tl.float32) - centre + 0.5) / scale)
    return tl.where((tap >= 0) & (tap < size), tl.maximum(1.0 - distance, 0.0), 0.0)


@triton.jit
def resize(
    table,  # int64, FIELDS for each image
    affine,  # float32: for each channel factor, summand, and the value around the image
    out,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SOURCE: tl.constexpr,  # the dtype of the pixels
    ALIGN: tl.constexpr,  # align_corners, else pixel centres
    SMOOTH: tl.constexpr,  # antialiasing
    FLIP: tl.constexpr,  # the order of the channels
    LAST: tl.constexpr,  # channels last in memory
    ROUND: tl.constexpr,  # to whole pixel values, as images of bytes have
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    entry = table + image * 12
    if tl.load(entry + 10) == 0:  # no image for this row
        return
    place = tl.load(entry).to(tl.pointer_type(SOURCE))
    sc = tl.load(entry + 1)
    sh = tl.load(entry + 2)
    sw = tl.load(entry + 3)
    place += tl.load(entry + 4) * sh + tl.load(entry + 5) * sw
    box_h = tl.load(entry + 6).to(tl.int32)
    box_w = tl.load(entry + 7).to(tl.int32)
    top = tl.load(entry + 8).to(tl.int32)
    left = tl.load(entry + 9).to(tl.int32)
    height = tl.load(entry + 10).to(tl.int32)
    width = tl.load(entry + 11).to(tl.int32)

    y = pixel // WIDTH - top
    x = pixel % WIDTH - left
    wanted = pixel < HEIGHT * WIDTH
    ok = wanted & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    if SMOOTH:
        ratio_y = box_h.to(tl.float32) / height.to(tl.float32)
        ratio_x = box_w.to(tl.float32) / width.to(tl.float32)
        scale_y = tl.maximum(ratio_y, 1.0)
        scale_x = tl.maximum(ratio_x, 1.0)
        centre_y = (y.to(tl.float32) + 0.5) * ratio_y
        centre_x = (x.to(tl.float32) + 0.5) * ratio_x
        first_y = tl.floor(centre_y - scale_y + 0.5).to(tl.int32)
        first_x = tl.floor(centre_x - scale_x + 0.5).to(tl.int32)
        taps_y = (2 * scale_y).to(tl.int32) + 2
        taps_x = (2 * scale_x).to(tl.int32) + 2
        sum_y = tl.zeros([BLOCK], tl.float32)
        sum_x = tl.zeros([BLOCK], tl.float32)
        for i in range(taps_x):
            sum_x += _weight(first_x + i, centre_x, scale_x, box_w)
        red = tl.zeros([BLOCK], tl.float32)
        green = tl.zeros([BLOCK], tl.float32)
        blue = tl.zeros([BLOCK], tl.float32)
        for j in range(taps_y):
            row = first_y + j
            weight_y = _weight(row, centre_y, scale_y, box_h)
            sum_y += weight_y
            for i in range(taps_x):
                column = first_x + i
                weight = weight_y * _weight(column, centre_x, scale_x, box_w)
                here = ok & (weight > 0)
                red += weight * _pixels(place, row, column, sc, sh, sw, 0, here)
                if CHANNELS == 3:
                    green += weight * _pixels(place, row, column, sc, sh, sw, 1, here)
                    blue += weight * _pixels(place, row, column, sc, sh, sw, 2, here)
        total = tl.where(ok, sum_y * sum_x, 1.0)
        red /= total
        green /= total
        blue /= total
    else:
        if ALIGN:
            at_y = y.to(tl.float32) * (box_h - 1).to(tl.float32) / tl.maximum(height - 1, 1).to(tl.float32)
            at_x = x.to(tl.float32) * (box_w - 1).to(tl.float32) / tl.maximum(width - 1, 1).to(tl.float32)
        else:
            at_y = (y.to(tl.float32) + 0.5) * (box_h.to(tl.float32) / height.to(tl.float32)) - 0.5
            at_x = (x.to(tl.float32) + 0.5) * (box_w.to(tl.float32) / width.to(tl.float32)) - 0.5
        at_y = tl.minimum(tl.maximum(at_y, 0.0), (box_h - 1).to(tl.float32))
        at_x = tl.minimum(tl.maximum(at_x, 0.0), (box_w - 1).to(tl.float32))
        upper = at_y.to(tl.int32)
        start = at_x.to(tl.int32)
        lower = tl.minimum(upper + 1, box_h - 1)
        end = tl.minimum(start + 1, box_w - 1)
        down = at_y - upper.to(tl.float32)
        along = at_x - start.to(tl.float32)
        red = _blend(place, upper, lower, start, end, down, along, sc, sh, sw, 0, ok)
        green = red
        blue = red
        if CHANNELS == 3:
            green = _blend(place, upper, lower, start, end, down, along, sc, sh, sw, 1, ok)
            blue = _blend(place, upper, lower, start, end, down, along, sc, sh, sw, 2, ok)
    if FLIP:
        _store(out, affine, image, pixel, 0, blue, ok, wanted, HEIGHT, WIDTH, CHANNELS, LAST, ROUND)
        _store(out, affine, image, pixel, 2, red, ok, wanted, HEIGHT, WIDTH, CHANNELS, LAST, ROUND)
    else:
        _store(out, affine, image, pixel, 0, red, ok, wanted, HEIGHT, WIDTH, CHANNELS, LAST, ROUND)
        if CHANNELS == 3:
            _store(out, affine, image, pixel, 2, blue, ok, wanted, HEIGHT, WIDTH, CHANNELS, LAST, ROUND)
    if CHANNELS == 3:
        _store(out, affine, image, pixel, 1, green, ok, wanted, HEIGHT, WIDTH, CHANNELS, LAST, ROUND)


@triton.jit
def _blend(place, upper, lower, start, end, down, along, sc, sh, sw, channel, ok):
    """Bilinear interpolation between four pixels of a channel."""
    a = _pixels(place, upper, start, sc, sh, sw, channel, ok)
    b = _pixels(place, upper, end, sc, sh, sw, channel, ok)
    c = _pixels(place, lower, start, sc, sh, sw, channel, ok)
    d = _pixels(place, lower, end, sc, sh, sw, channel, ok)
    above = a + along * (b - a)
    below = c + along * (d - c)
    return above + down * (below - above)


@triton.jit
def _store(
    out,
    affine,
    image,
    pixel,
    channel: tl.constexpr,
    value,
    ok,
    wanted,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    ROUND: tl.constexpr,
):
    value = tl.where(ok, value, tl.load(affine + channel * 3 + 2))
    if ROUND:
        value = tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)
    value = value * tl.load(affine + channel * 3) + tl.load(affine + channel * 3 + 1)
    area: tl.constexpr = HEIGHT * WIDTH
    start = image.to(tl.int64) * (CHANNELS * area)
    if LAST:
        where = start + pixel * CHANNELS + channel
    else:
        where = start + channel * area + pixel
    tl.store(out + where, value.to(out.dtype.element_ty), mask=wanted)


def dtype_of(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for the dtype of an image."""
    return {torch.uint8: tl.uint8, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
