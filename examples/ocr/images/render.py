"""Renders the three text images beside it; run it only to change them (needs two fonts of Debian).

apt-get install fonts-dejavu-core fonts-wqy-microhei
python examples/ocr/images/render.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SANS = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
SERIF = "/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf"
CHINESE = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"

LATIN = [
    (SANS, 40, "Many threads, one pipe"),
    (SERIF, 22, "A request is a plain dict. It walks along nodes."),
    (SERIF, 22, "At each node it joins a batch, and one of the"),
    (SERIF, 22, "node's instances runs the batch."),
    (SANS, 24, "Name            Amount        Price"),
    (SANS, 20, "Coffee              2           7.80 EUR"),
    (SANS, 20, "Croissant          3         10.50 EUR"),
    (SANS, 20, "Total                          18.30 EUR"),
    (SERIF, 22, "Paid in cash on 24 March 2026 at 09:41"),
    (SANS, 16, "Questions? mail@example.org, +49 30 1234567"),
]
CHINESE_LINES = [
    (CHINESE, 44, "多线程推理服务"),
    (CHINESE, 26, "一个请求就是一个字典,它沿着节点前进。"),
    (CHINESE, 26, "在每个节点,请求组成批次,由空闲的实例处理。"),
    (CHINESE, 26, "检测、方向判断、识别,最后按阅读顺序合并。"),
    (CHINESE, 30, "北京  上海  广州  深圳"),
    (CHINESE, 24, "电话:010-12345678  邮编:100084"),
    (CHINESE, 24, "2026年3月24日  星期二  晴  12"),
]


def page(lines: list[tuple[str, int, str]], size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (252, 250, 244))
    draw, y = ImageDraw.Draw(image), 28
    for font, height, text in lines:
        draw.text((36, y), text, (24, 24, 40), ImageFont.truetype(font, height))
        y += int(height * 1.75)
    return image


def sign(text: str, angle: float) -> Image.Image:
    """A board with text, turned by ``angle`` degrees."""
    font = ImageFont.truetype(SANS, 38)
    board = Image.new("RGBA", (int(font.getlength(text)) + 60, 80), (20, 90, 60, 255))
    ImageDraw.Draw(board).text((30, 16), text, (255, 255, 255), font)
    return board.rotate(angle, expand=True, resample=Image.Resampling.BICUBIC)


def signs() -> Image.Image:
    image = Image.new("RGB", (760, 740), (190, 205, 220))
    for text, angle, corner in (
        ("Platform 9", 0, (40, 30)),
        ("Upside down", 180, (380, 110)),
        ("Harbour Street", 24, (40, 180)),
        ("Exit to the park", -18, (330, 330)),
        ("Upwards", 90, (80, 450)),
        ("Turned over", 190, (300, 560)),
    ):
        board = sign(text, angle)
        image.paste(board, corner, board)
    return image


if __name__ == "__main__":
    page(LATIN, (760, 640)).save(HERE / "latin.png", optimize=True)
    page(CHINESE_LINES, (760, 560)).save(HERE / "chinese.png", optimize=True)
    signs().save(HERE / "signs.jpg", quality=88)
