"""An e-book of recipes and an e-mail in text and HTML."""

from email.message import EmailMessage

from ebooklib import epub

from .common import FILES, Rows, repack

RECIPES: list[tuple[str, str, Rows, list[str], str]] = [
    (
        "红烧肉",
        "四人份，总用时约90分钟。",
        [
            ("食材", "用量"),
            ("五花肉", "750克"),
            ("冰糖", "40克"),
            ("生抽", "2汤匙"),
            ("黄酒", "200毫升"),
            ("八角", "2颗"),
        ],
        [
            "五花肉切成3厘米见方的块，冷水下锅焯3分钟。",
            "小火把冰糖炒成枣红色，倒入肉块翻炒上色。",
            "加黄酒、生抽、八角和没过肉的热水，大火烧开后转小火炖60分钟。",
            "开大火收汁，撒葱花出锅。",
        ],
        "炒糖色要用小火，变黑就会发苦。",
    ),
    (
        "清蒸鲈鱼",
        "三人份，总用时约25分钟。",
        [
            ("食材", "用量"),
            ("鲈鱼", "1条（约600克）"),
            ("姜", "20克"),
            ("葱", "3根"),
            ("蒸鱼豉油", "3汤匙"),
            ("食用油", "30毫升"),
        ],
        [
            "鲈鱼洗净，两面各划三刀，铺上姜片腌10分钟。",
            "水开后上锅，大火蒸8分钟，关火再焖2分钟。",
            "倒掉盘中的汁水，铺葱丝，淋蒸鱼豉油。",
            "把油烧到冒烟，浇在葱丝上。",
        ],
        "蒸的时间随鱼的大小增减，每增加100克多蒸1分钟。",
    ),
    (
        "麻婆豆腐",
        "三人份，总用时约20分钟。",
        [
            ("食材", "用量"),
            ("嫩豆腐", "400克"),
            ("牛肉末", "80克"),
            ("郫县豆瓣酱", "25克"),
            ("花椒粉", "3克"),
            ("水淀粉", "50毫升"),
        ],
        [
            "豆腐切2厘米的块，放入加盐的热水浸5分钟去豆腥。",
            "牛肉末炒酥，加豆瓣酱炒出红油。",
            "放入豆腐和150毫升高汤，中火煮4分钟。",
            "分两次淋水淀粉勾芡，撒花椒粉。",
        ],
        "豆腐下锅后不要用铲子翻，晃动锅子即可。",
    ),
    (
        "葱油拌面",
        "两人份，总用时约30分钟。",
        [
            ("食材", "用量"),
            ("鲜面条", "300克"),
            ("小葱", "100克"),
            ("食用油", "80毫升"),
            ("生抽", "3汤匙"),
            ("白糖", "10克"),
        ],
        [
            "小葱切段，擦干水分。",
            "冷油下葱，小火熬15分钟至葱段焦黄。",
            "加生抽和白糖，煮到糖化开。",
            "面条煮熟沥水，拌入两勺葱油。",
        ],
        "剩下的葱油密封后放冰箱冷藏，可保存两周。",
    ),
]


def make() -> None:
    _book()
    _mail()


def _book() -> None:
    book = epub.EpubBook()
    book.set_identifier("jiachang-caipu-2025")
    book.set_title("家常菜谱")
    book.set_language("zh")
    book.add_author("周素芬")
    chapters = []
    for number, (name, intro, items, steps, tip) in enumerate(RECIPES, start=1):
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in items)
        chapter = epub.EpubHtml(title=name, file_name=f"recipe{number}.xhtml", lang="zh")
        chapter.content = (
            f"<html><body><h1>{name}</h1><p>{intro}</p><h2>食材</h2><table>{rows}</table><h2>做法</h2><ol>"
            + "".join(f"<li>{step}</li>" for step in steps)
            + f"</ol><h2>小贴士</h2><p>{tip}</p></body></html>"
        )
        book.add_item(chapter)
        chapters.append(chapter)
    book.toc = chapters
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    book.spine = ["nav", *chapters]
    path = FILES / "家常菜谱.epub"
    epub.write_epub(str(path), book)
    repack(path)


def _mail() -> None:
    message = EmailMessage()
    message["From"] = "行政部 董莉 <dong.li@haichuan.example>"
    message["To"] = "总部全体员工 <all-sh@haichuan.example>"
    message["Cc"] = "物业 <service@anju.example>"
    message["Subject"] = "关于总部大楼夏季空调检修和停电的通知"
    message["Date"] = "Thu, 08 May 2025 09:12:00 +0800"
    message["Message-ID"] = "<20250508.0912@haichuan.example>"
    lines = [
        "各位同事：",
        "总部大楼将进行夏季空调检修，安排如下：",
        "10楼、11楼：2025年5月17日（周六）8:00至18:00；12楼：2025年5月18日（周日）8:00至16:00。",
        "检修期间相应楼层停电，请在前一个工作日下班前关闭电脑和显示器，冰箱请自行清空。",
        "11楼机房由备用电源供电，不受影响；打印机和门禁系统停用，需要加班的同事请提前到前台登记，走北门。",
        "空调自5月19日起恢复供应，办公区温度统一设为26℃。",
        "如有问题请联系行政部董莉，分机8910，或致电物业工程部王师傅，手机139-0002-7788。",
        "行政部",
        "2025年5月8日",
    ]
    message.set_content("\n\n".join(lines) + "\n\n--\n本邮件可能包含保密信息，如误收请删除。\n")
    message.add_alternative(
        "<html><body>" + "".join(f"<p>{line}</p>" for line in lines) + "</body></html>", subtype="html"
    )
    message.set_boundary("==haichuan-20250508==")
    (FILES / "关于空调检修和停电的通知.eml").write_bytes(message.as_bytes())
