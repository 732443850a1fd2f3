"""PDFs that Chromium prints from web pages: two years of one policy, and a data sheet in two columns.

The fonts are subsets of Noto Sans CJK, whose reverse mapping gives Kangxi radicals for some characters (⼯, ⻓, ⻔), as
in many PDFs that people print from a browser.
"""

import re
from pathlib import Path

from playwright.sync_api import sync_playwright

from .common import FILES, Rows

_STYLE = """
body { font-family: "Noto Sans CJK SC"; font-size: 10.5pt; line-height: 1.7; }
h1 { font-size: 18pt; text-align: center; } h2 { font-size: 13pt; } h3 { font-size: 11pt; }
table { border-collapse: collapse; width: 100%; margin: 6pt 0; }
th, td { border: 0.6pt solid #555; padding: 3pt 5pt; text-align: left; } th { background: #eee; }
.columns { column-count: 2; column-gap: 18pt; }
.meta { text-align: right; color: #555; }
"""
_STAMP = re.compile(rb"(/(?:CreationDate|ModDate) \(D:)[^)]*\)")


def _table(rows: Rows) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return (
        "<table><thead><tr>"
        + "".join(f"<th>{cell}</th>" for cell in head)
        + "</tr></thead><tbody>"
        + "".join(lines)
        + "</tbody></table>"
    )


def _policy(year: int, values: dict[str, str], hotel: Rows, abroad: Rows, ride: Rows, approval: Rows) -> str:
    return f"""
<h1>海川智能差旅与费用报销制度（{year}版）</h1>
<p class="meta">文件编号：HC-FIN-{year}-003　发布部门：财务部　生效日期：{values["effective"]}</p>
<h2>一、目的与范围</h2>
<p>为规范员工因公出差和费用报销行为，控制成本、提高效率，特制定本制度。本制度适用于公司及各子公司全体正式员工；外聘顾问的差旅费用按合同执行。</p>
<h2>二、出差申请</h2>
<p>员工出差应至少提前{values["notice"]}个工作日在OA系统提交《出差申请单》，注明事由、行程、预算和同行人员。未经批准擅自出差的，费用不予报销。紧急出差可口头请示，但须在出差后2个工作日内补办申请。</p>
<h2>三、住宿标准</h2>
<p>住宿费在下列标准内凭发票实报实销，单位为元/晚。一线城市指{values["first_tier"]}。两名同性员工同行的，原则上合住一间标准间。</p>
{_table(hotel)}
<p>超出标准的部分由个人承担；因展会、会议等原因确需超标的，应事先取得部门总监书面同意，并在报销时附超标说明。</p>
<h2>四、境外住宿标准</h2>
<p>境外出差的住宿标准按地区确定，单位为美元/晚，所有职级相同。</p>
{_table(abroad)}
<h2>五、交通标准</h2>
{_table(ride)}
<p>员工因公自驾私家车的，按{values["mileage"]}元/公里报销，过路费凭票据另报。机票须通过公司协议平台“携行商旅”预订，原则上提前7天以上出票。</p>
<h2>六、出差补助</h2>
<p>境内出差补助为每人每天{values["allowance"]}元，境外出差补助为每人每天{values["allowance_abroad"]}美元，按自然日计算，出发日和返回日各计一天。由接待方提供餐食的，补助减半发放。</p>
<h2>七、业务招待</h2>
<p>业务招待实行事前审批，餐费标准为人均不超过{values["dinner"]}元，陪同人员不得超过来宾人数的一半。招待费报销须附招待申请单和菜单明细。</p>
<h2>八、报销流程</h2>
<h3>8.1 报销材料</h3>
<p>报销差旅费须提交下列材料：</p>
<ol><li>审批通过的《出差申请单》</li><li>增值税发票原件或电子发票</li><li>登机牌、火车票或行程单</li><li>酒店住宿水单</li><li>超标说明（如有）</li></ol>
<h3>8.2 报销时限</h3>
<p>员工应在出差返回后{values["deadline"]}内提交报销申请，逾期未提交的，须经分管副总裁批准后方可受理；跨年度费用应在次年1月15日前报销完毕。</p>
<h3>8.3 审批权限</h3>
{_table(approval)}
<h3>8.4 付款</h3>
<p>财务部在审批完成后{values["payment"]}个工作日内将款项支付至员工工资卡。</p>
<h2>九、差旅借款</h2>
<p>单次差旅借款最高不超过{values["loan"]}元，借款应在返回后30日内冲销；前款未清的，不得再次借款。</p>
<h2>十、监督与处罚</h2>
<p>虚报、伪造票据的，除追回款项外，按《员工手册》给予书面警告直至解除劳动合同。本制度由财务部{values["owner"]}负责解释，咨询分机{values["extension"]}。</p>
"""


def _policy_2025() -> str:
    return _policy(
        2025,
        {
            "effective": "2025年1月1日",
            "notice": "3",
            "first_tier": "北京、上海、广州、深圳、杭州",
            "mileage": "1.2",
            "allowance": "120",
            "allowance_abroad": "60",
            "dinner": "200",
            "deadline": "15个工作日",
            "payment": "5",
            "loan": "10,000",
            "owner": "费用组林晓燕",
            "extension": "8306",
        },
        [
            ("职级", "一线城市", "省会及计划单列市", "其他城市"),
            ("P4-P5", "450", "350", "280"),
            ("P6-P7", "600", "480", "380"),
            ("P8-P9", "800", "650", "500"),
            ("总监及以上", "1200", "900", "700"),
        ],
        [
            ("地区", "住宿上限（美元/晚）"),
            ("日本、韩国", "160"),
            ("东南亚", "120"),
            ("欧洲", "220"),
            ("北美", "240"),
            ("港澳台", "180"),
        ],
        [
            ("职级", "火车", "飞机", "市内交通每日上限"),
            ("P4-P7", "高铁二等座", "经济舱（须总监审批）", "80元"),
            ("P8-P9", "高铁一等座", "经济舱", "120元"),
            ("总监及以上", "高铁商务座", "公务舱（航程4小时以上）", "实报实销"),
        ],
        [
            ("单次报销金额", "审批人"),
            ("5,000元以下", "部门经理"),
            ("5,000元至20,000元", "部门总监、财务BP"),
            ("20,000元以上", "首席财务官"),
        ],
    )


def _policy_2024() -> str:
    return _policy(
        2024,
        {
            "effective": "2024年1月1日",
            "notice": "5",
            "first_tier": "北京、上海、广州、深圳",
            "mileage": "1.0",
            "allowance": "100",
            "allowance_abroad": "50",
            "dinner": "150",
            "deadline": "30日",
            "payment": "10",
            "loan": "8,000",
            "owner": "费用组赵敏",
            "extension": "8302",
        },
        [
            ("职级", "一线城市", "省会及计划单列市", "其他城市"),
            ("P4-P5", "400", "320", "250"),
            ("P6-P7", "550", "430", "350"),
            ("P8-P9", "750", "590", "460"),
            ("总监及以上", "1000", "820", "660"),
        ],
        [
            ("地区", "住宿上限（美元/晚）"),
            ("日本、韩国", "140"),
            ("东南亚", "110"),
            ("欧洲", "200"),
            ("北美", "210"),
            ("港澳台", "165"),
        ],
        [
            ("职级", "火车", "飞机", "市内交通每日上限"),
            ("P4-P7", "高铁二等座", "不报销", "60元"),
            ("P8-P9", "高铁二等座", "经济舱", "100元"),
            ("总监及以上", "高铁一等座", "经济舱", "150元"),
        ],
        [
            ("单次报销金额", "审批人"),
            ("3,000元以下", "部门经理"),
            ("3,000元至15,000元", "部门总监"),
            ("15,000元以上", "首席财务官"),
        ],
    )


SPECIFICATION = [
    ("参数", "HC200A", "HC200B", "HC200Pro"),
    ("处理器", "四核Cortex-A53 1.4 GHz", "四核Cortex-A55 1.8 GHz", "八核Cortex-A76 2.4 GHz"),
    ("内存", "1 GB", "2 GB", "8 GB"),
    ("存储", "8 GB eMMC", "16 GB eMMC", "64 GB eMMC"),
    ("以太网口", "2×百兆", "2×千兆", "4×千兆"),
    ("串口", "2×RS485", "4×RS485", "4×RS485 + 2×RS232"),
    ("无线", "无", "Wi-Fi 5", "Wi-Fi 6，5G选配"),
    ("工作温度", "-10 ～ 55 ℃", "-20 ～ 60 ℃", "-40 ～ 75 ℃"),
    ("防护等级", "IP30", "IP40", "IP65"),
    ("典型功耗", "4 W", "6.5 W", "12 W"),
    ("供电", "DC 12 V", "DC 9-24 V", "DC 9-36 V 或 PoE"),
    ("外形尺寸", "120×80×28 mm", "140×95×32 mm", "180×130×45 mm"),
    ("重量", "260 g", "380 g", "920 g"),
    ("最大接入设备数", "64", "256", "1024"),
    ("质保期", "1年", "2年", "3年"),
    ("订货号", "6.0321.0021", "6.0321.0022", "6.0321.0028"),
]
LAMPS = [
    ("指示灯", "颜色与状态", "含义"),
    ("PWR", "绿色常亮", "供电正常"),
    ("PWR", "红色常亮", "输入电压过低"),
    ("NET", "绿色闪烁", "正在传输数据"),
    ("NET", "熄灭", "未连接网络"),
    ("SYS", "黄色快闪", "固件升级中，请勿断电"),
    ("SYS", "红色常亮", "系统故障，请联系售后"),
]


def _data_sheet() -> str:
    return f"""
<h1>HC200系列智能网关产品规格书</h1>
<p class="meta">文档版本 V2.3　发布日期 2025-02-18</p>
<div class="columns">
<h2>1 产品概述</h2>
<p>HC200系列是面向工业现场的边缘智能网关，可接入PLC、仪表、传感器等设备，在本地完成协议解析、数据清洗和告警判断，再通过有线或无线网络上送云平台。全系列采用无风扇散热设计，支持导轨和壁挂两种安装方式。</p>
<h2>2 主要特点</h2>
<p>支持Modbus RTU、Modbus TCP、OPC UA、MQTT等协议，其中BACnet/IP仅HC200Pro支持。内置断点续传，网络中断时可在本地缓存7天数据，恢复后自动补传。支持通过网页、命令行和云平台三种方式远程升级固件。</p>
<p>产品通过CE、FCC和SRRC认证；电磁兼容满足工业四级要求，静电放电抗扰度为接触8 kV、空气15 kV。</p>
<h2>3 安装与接线</h2>
<p>设备应安装在干燥通风处，周围至少保留50 mm散热空间。RS485总线最长1,200米，两端须各接一个120 Ω终端电阻。接地线截面积不小于2.5 mm²。</p>
<h2>4 首次登录</h2>
<p>设备出厂IP地址为192.168.10.1，默认用户名为admin，初始密码见机身标签，首次登录时系统会强制修改密码。连续输错密码5次，账号锁定15分钟。</p>
<h2>5 恢复出厂设置</h2>
<p>设备通电状态下，用卡针长按RESET键10秒，待SYS灯黄色快闪后松开，设备将自动重启并恢复出厂设置。恢复后全部配置和缓存数据将被清除，无法找回。</p>
<h2>6 售后服务</h2>
<p>售后热线400-820-6655，服务时间为周一至周六8:30至17:30。返修设备请寄至苏州市吴中区东吴南路88号海川智能售后中心，收件人陈立。</p>
</div>
<h2>7 技术参数</h2>
<p>三种型号的主要参数见下表，除另有说明外，均在25 ℃环境下测得。</p>
{_table(SPECIFICATION)}
<h2>8 指示灯说明</h2>
{_table(LAMPS)}
<h2>9 装箱清单</h2>
<p>网关主机1台、电源适配器1个（HC200Pro不含）、导轨卡扣1套、合格证1张、快速安装指南1份。</p>
"""


def make() -> None:
    pages = {
        "差旅报销制度-2024版.pdf": (_policy_2024(), "海川智能差旅与费用报销制度 HC-FIN-2024-003"),
        "差旅报销制度-2025版.pdf": (_policy_2025(), "海川智能差旅与费用报销制度 HC-FIN-2025-003"),
        "HC200系列智能网关产品规格书.pdf": (_data_sheet(), "HC200系列智能网关产品规格书 V2.3"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        for name, (body, header) in pages.items():
            page.set_content(
                f"<html lang='zh'><head><title>{header}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
            )
            line = "font-size:8px;width:100%;padding:0 1.5cm;font-family:'Noto Sans CJK SC'"
            page.pdf(
                path=FILES / name,
                format="A4",
                margin={"top": "2cm", "bottom": "2cm", "left": "1.8cm", "right": "1.8cm"},
                display_header_footer=True,
                header_template=f"<div style=\"{line}\">{header}<span style='float:right'>内部文件</span></div>",
                footer_template=f"<div style=\"{line};text-align:center\">第 <span class='pageNumber'></span> 页 / 共 "
                "<span class='totalPages'></span> 页　海川智能科技有限公司</div>",
            )
            _fix_dates(FILES / name)
        browser.close()


def _fix_dates(path: Path) -> None:
    path.write_bytes(_STAMP.sub(rb"\g<1>20250506090000+00'00')", path.read_bytes()))
