"""Scanned pages: drawn as a picture, turned a little, made noisy, and put into a PDF that has no text."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from .common import FILES, SCAN_FONT, Rows

_SIZE = (1240, 1754)  # A4 at 150 dots an inch
_LEFT, _RIGHT = 110, 1130
_TEXT, _HEAD = 27, 40


class _Page:
    """A sheet of paper that is written on from the top."""

    def __init__(self) -> None:
        self.image = Image.new("L", _SIZE, 250)
        self._draw = ImageDraw.Draw(self.image)
        self._y = 110

    def title(self, text: str) -> None:
        font = ImageFont.truetype(SCAN_FONT, _HEAD)
        self._draw.text(((_SIZE[0] - self._draw.textlength(text, font)) / 2, self._y), text, 25, font)
        self._y += 90

    def paragraph(self, text: str) -> None:
        font = ImageFont.truetype(SCAN_FONT, _TEXT)
        line = ""
        for character in text:
            if self._draw.textlength(line + character, font) > _RIGHT - _LEFT:
                self._line(line, font)
                line = ""
            line += character
        self._line(line, font)
        self._y += 12

    def table(self, rows: Rows) -> None:
        font = ImageFont.truetype(SCAN_FONT, _TEXT - 2)
        width, height = (_RIGHT - _LEFT) / len(rows[0]), 54
        for row in rows:
            for i, cell in enumerate(row):
                x = _LEFT + i * width
                self._draw.rectangle((x, self._y, x + width, self._y + height), outline=60, width=2)
                self._draw.text((x + 12, self._y + 12), cell, 30, font)
            self._y += height
        self._y += 28

    def _line(self, text: str, font: ImageFont.FreeTypeFont) -> None:
        self._draw.text((_LEFT, self._y), text, 30, font)
        self._y += 46


def make() -> None:
    _scan("物业收费公示-扫描件.pdf", _estate, degrees=2.0, seed=1)
    _scan("体检中心项目价格-扫描件.pdf", _check_up, degrees=-1.6, seed=2)
    _scan("设备验收单-扫描件.pdf", _acceptance, degrees=2.8, seed=3)


def _estate(page: _Page) -> None:
    page.title("锦绣花园小区物业服务收费公示")
    page.paragraph("收费单位：安居物业服务有限公司。公示期：2025年4月1日至4月30日。")
    page.table(
        [
            ("收费项目", "收费标准", "收取方式"),
            ("高层住宅物业费", "2.80元/㎡·月", "按季度预收"),
            ("洋房物业费", "3.50元/㎡·月", "按季度预收"),
            ("商铺物业费", "6.00元/㎡·月", "按月收取"),
            ("地面固定车位", "150元/月", "按季度预收"),
            ("地下固定车位", "300元/月", "按季度预收"),
            ("装修保证金", "2000元/户", "验收后退还"),
            ("装修垃圾清运费", "4元/㎡", "一次性收取"),
            ("二次供水加压费", "0.45元/吨", "随水费代收"),
        ]
    )
    page.paragraph("临时停车首小时免费，之后每小时5元，24小时内最高40元。")
    page.paragraph("业主逾期缴纳物业费的，自逾期之日起按日加收万分之五的滞纳金。")
    page.paragraph("装修时间为周一至周五8:00至12:00、14:00至18:00，周末和法定节假日禁止施工。")
    page.paragraph("物业服务中心位于3号楼1层，办公时间为8:30至20:00，服务电话0731-8455-2266，项目经理彭建华。")


def _check_up(page: _Page) -> None:
    page.title("康宁体检中心套餐价格表（2025年）")
    page.table(
        [
            ("套餐", "男性价格", "女性价格", "项目数"),
            ("基础套餐", "380元", "420元", "18项"),
            ("标准套餐", "780元", "860元", "32项"),
            ("精英套餐", "1680元", "1880元", "46项"),
            ("尊享套餐", "3280元", "3580元", "61项"),
        ]
    )
    page.paragraph("单项加项价格如下：")
    page.table(
        [
            ("项目", "价格", "说明"),
            ("低剂量胸部CT", "360元", "孕妇禁做"),
            ("甲状腺彩超", "150元", "无须空腹"),
            ("幽门螺杆菌检测", "120元", "须空腹"),
            ("无痛胃镜", "1150元", "须家属陪同"),
        ]
    )
    page.paragraph("体检当日请空腹8小时以上，采血截止时间为上午10:30。体检时间为周二至周日7:30至12:00。")
    page.paragraph("体检报告在5个工作日后领取，也可选择邮寄，邮费20元。团检20人以上享受八五折。")
    page.paragraph("地址：长沙市芙蓉中路二段188号康宁大厦4层，预约电话0731-8218-6600。")


def _acceptance(page: _Page) -> None:
    page.title("设备验收单")
    page.table(
        [
            ("设备名称", "三坐标测量机"),
            ("规格型号", "CMM-8106"),
            ("设备编号", "KS-QC-0042"),
            ("供应商", "青岛海测仪器有限公司"),
            ("到货日期", "2025年4月9日"),
            ("验收日期", "2025年4月23日"),
            ("购置价格", "368,000元"),
            ("使用部门", "品质部"),
            ("安装地点", "昆山工厂恒温室"),
            ("测量精度", "1.9+L/300 微米"),
            ("验收结论", "合格，准予使用"),
        ]
    )
    page.paragraph("随机附件：测头3支、标准球1个、操作手册2册、保修卡1张。")
    page.paragraph("验收人：品质部卢晨、设备科孙国栋。保修期自验收之日起18个月。")
    page.paragraph("备注：空调须保持恒温室温度20±1℃，首次校准有效期至2026年4月22日。")


def _scan(name: str, write: Callable[[_Page], None], degrees: float, seed: int) -> None:
    page = _Page()
    write(page)
    turned = page.image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=250).filter(ImageFilter.GaussianBlur(0.6))
    pixels = np.asarray(turned, dtype=np.float32)  # (height, width)
    noisy = pixels + np.random.default_rng(seed).normal(0, 6, pixels.shape)
    picture = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(picture, "JPEG", quality=55)
    picture.seek(0)
    canvas = Canvas(str(FILES / name), pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(picture), 0, 0, *A4)
    canvas.save()
