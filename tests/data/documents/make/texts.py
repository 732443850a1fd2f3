"""Web pages with navigation around them, Markdown, text as Windows writes it, and records in JSON lines."""

import json

from .common import FILES

HOSPITAL = """<!DOCTYPE html>
<html lang="zh-CN"><head><meta charset="utf-8"><title>就诊须知 - 江临市第一人民医院</title>
<style>nav li { display: inline }</style><script>var visits = 20381; function share() { alert("分享"); }</script></head>
<body>
<header><img src="logo.png" alt="logo"><div>江临市第一人民医院</div></header>
<nav><ul><li><a href="/">首页</a></li><li><a href="/about">医院概况</a></li><li><a href="/guide">就诊指南</a></li>
<li><a href="/dept">科室导航</a></li><li><a href="/doctor">专家介绍</a></li><li><a href="/news">新闻中心</a></li>
<li><a href="/job">人才招聘</a></li></ul></nav>
<div class="breadcrumb">当前位置：<a href="/">首页</a> &gt; <a href="/guide">就诊指南</a> &gt; 就诊须知</div>
<main><article>
<h1>门诊就诊须知</h1>
<p class="info">发布时间：2025-04-01　来源：门诊部　浏览次数：20381</p>
<h2>一、预约挂号</h2>
<p>患者可通过医院微信公众号、支付宝小程序、自助机和114电话预约挂号，可预约未来14天内的号源，每日7:00放号。预约时须填写患者本人的真实姓名和身份证号。</p>
<p>需要退号的，请在就诊前一日22:00前办理；一年内累计爽约3次的，暂停网上预约资格30天。</p>
<h2>二、挂号费</h2>
<table><thead><tr><th>号别</th><th>挂号费</th><th>医保是否支付</th></tr></thead><tbody>
<tr><td>普通门诊</td><td>15元</td><td>支付</td></tr>
<tr><td>副主任医师</td><td>30元</td><td>部分支付</td></tr>
<tr><td>主任医师</td><td>50元</td><td>部分支付</td></tr>
<tr><td>特需门诊</td><td>300元</td><td>不支付</td></tr>
</tbody></table>
<h2>三、门诊时间与位置</h2>
<table><tr><th>科室</th><th>周一至周五</th><th>周六</th><th>位置</th></tr>
<tr><td>内科</td><td>8:00-17:30</td><td>8:00-12:00</td><td>门诊楼2层</td></tr>
<tr><td>儿科</td><td>8:00-21:00</td><td>8:00-21:00</td><td>门诊楼1层</td></tr>
<tr><td>口腔科</td><td>8:30-17:00</td><td>停诊</td><td>门诊楼5层</td></tr>
<tr><td>皮肤科</td><td>8:00-17:00</td><td>8:00-11:30</td><td>门诊楼4层</td></tr>
<tr><td>眼科</td><td>8:00-17:30</td><td>8:30-12:00</td><td>门诊楼4层</td></tr>
<tr><td>中医科</td><td>8:00-16:30</td><td>停诊</td><td>国医楼1层</td></tr></table>
<p>急诊和发热门诊24小时开放，发热门诊位于医院东门内。</p>
<h2>四、检查与取报告</h2>
<p>抽血时间为每日7:00至11:00，空腹项目须在9:30前完成。血常规报告30分钟后可取，生化报告当日16:00后可取，核磁共振报告须等待48小时。报告可在门诊楼1层自助机打印，凭检查条码领取。</p>
<h2>五、住院与探视</h2>
<p>办理住院须携带住院证、身份证、医保卡（或电子医保凭证），到住院部1层入院服务中心办理，预交金一般为5000元，可刷卡或扫码支付。</p>
<p>探视时间为每日15:00至19:00，每次不超过2人，重症监护室探视时间为16:00至16:30，每次限1人。</p>
<h2>六、投诉与建议</h2>
<p>医患沟通办公室位于行政楼3层306室，电话0716-8122-3456，接待时间为工作日8:30至17:00。</p>
</article></main>
<aside><h3>热门文章</h3><ul><li><a href="/n/1">2024年度优秀护士评选结果</a></li><li><a href="/n/2">我院引进新型CT设备</a></li></ul></aside>
<footer><p>友情链接：<a href="#">国家卫生健康委员会</a> | <a href="#">江临市政府</a></p>
<p>版权所有 © 2025 江临市第一人民医院　地址：江临市沿江大道99号　邮编：434000　备案号：鄂ICP备00000000号</p></footer>
</body></html>
"""
SLA = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>NimbusCloud Service Level Agreement</title></head><body>
<nav><a href="/">Home</a> <a href="/pricing">Pricing</a> <a href="/docs">Docs</a> <a href="/login">Log in</a></nav>
<main><h1>NimbusCloud Service Level Agreement</h1>
<p>Effective date: 1 February 2025. This agreement applies to paying customers of NimbusCloud.</p>
<h2>1. Monthly uptime commitment</h2>
<p>NimbusCloud will use commercially reasonable efforts to keep each service available as set out below.</p>
<table><tr><th>Service</th><th>Uptime commitment</th><th>Allowed downtime per month</th></tr>
<tr><td>Object Storage</td><td>99.95%</td><td>22 minutes</td></tr>
<tr><td>Managed Database</td><td>99.9%</td><td>44 minutes</td></tr>
<tr><td>Message Queue</td><td>99.5%</td><td>3.6 hours</td></tr></table>
<h2>2. Service credits</h2>
<table><tr><th>Monthly uptime</th><th>Service credit</th></tr>
<tr><td>Below the commitment but at least 99.0%</td><td>10% of the monthly fee</td></tr>
<tr><td>Below 99.0% but at least 95.0%</td><td>25% of the monthly fee</td></tr>
<tr><td>Below 95.0%</td><td>50% of the monthly fee</td></tr></table>
<p>Customers must request a credit by e-mail to credits@nimbuscloud.example within 30 days after the end of the month in which the incident occurred.</p>
<h2>3. Support</h2>
<p>Business plan customers receive a first response to severity 1 incidents within 30 minutes, around the clock. Standard plan customers receive a response within 8 business hours.</p>
<h2>4. Exclusions</h2>
<p>The commitment does not cover scheduled maintenance announced at least 72 hours in advance, failures of the customer's own network, or beta features.</p>
</main><footer>© 2025 NimbusCloud Ltd. · Privacy · Cookies · Careers</footer></body></html>
"""
MEETING = """# 产品周会纪要（2025年4月18日）

- 时间：2025年4月18日（周五）14:00-15:30
- 地点：总部12楼百川厅
- 主持人：张伟
- 参会：张玮、王梓涵、高明、周雯、陈立
- 缺席：何倩（休假）
- 记录：王梓涵

## 一、HC200Pro 试产情况

试产共120台，一次直通率92.5%，低于95%的目标。主要不良为5G模组虚焊（6台）和外壳划伤（3台）。高明说明虚焊原因是回流焊温度曲线偏低，已调整并加严首件检验。

## 二、交付计划

客户“北辰能源”的首批订单300台改为2025年5月30日交付，原计划5月15日。周雯确认通信模组到货时间为5月12日。

## 三、售后反馈

陈立通报一季度返修率为1.8%，上年四季度为2.4%。返修最多的是HC200A电源接口松动，占返修总数的四成。

## 四、决议

| 事项 | 责任人 | 截止日期 |
|---|---|---|
| 修订回流焊作业指导书 | 高明 | 4月25日 |
| 完成5G模组来料抽检方案 | 张玮 | 4月28日 |
| 与北辰能源签订补充协议 | 周雯 | 5月6日 |
| 电源接口改版评审 | 张伟 | 5月9日 |
| 更新售后知识库 | 陈立 | 4月30日 |

下次会议：2025年4月25日14:00，地点不变。
"""
IT_DESK = """# 信息技术服务台手册

版本 3.1，2025年4月10日，信息技术部 贺冬

## 1 事件分级与响应

| 级别 | 定义 | 响应时间 | 解决时间 |
|---|---|---|---|
| P1 | 全公司业务中断 | 15分钟 | 4小时 |
| P2 | 部门业务中断 | 30分钟 | 8小时 |
| P3 | 单个用户无法工作 | 2小时 | 1个工作日 |
| P4 | 咨询与一般请求 | 4小时 | 3个工作日 |

## 2 账号与密码

### 2.1 密码规则

密码长度不少于12位，须包含大小写字母、数字和特殊符号中的三类，每90天更换一次，不得与最近5次相同。

### 2.2 忘记密码

忘记密码时，打开 `https://sso.haichuan.example/reset`，输入工号和手机验证码即可自助重置；手机号已更换的，带工牌到总部11楼服务台办理。

## 3 VPN

VPN客户端在软件中心下载，首次使用须绑定动态口令。外包人员的VPN账号由用人部门经理申请，有效期最长90天，到期自动停用。

## 4 办公电脑

### 4.1 更换周期

| 设备 | 更换周期 | 标准配置 |
|---|---|---|
| 普通办公笔记本 | 4年 | 16 GB内存，512 GB硬盘 |
| 研发工作站 | 3年 | 64 GB内存，2 TB硬盘 |
| 显示器 | 6年 | 27英寸，2K |
| 手写板 | 5年 | 按需 |

### 4.2 遗失与损坏

电脑遗失应在2小时内电话报告服务台，以便远程锁定和擦除。人为损坏的，由个人承担维修费用的50%。

## 5 打印机

打印机驱动从 `\\\\print\\share` 安装；彩色打印每人每月限100页，超出部分计入部门成本。卡纸时请先关闭电源，再从后盖取出纸张，切勿用力拉扯。

## 6 邮箱

邮箱容量为50 GB，单封邮件附件上限为25 MB，更大的文件请用网盘分享。离职员工的邮箱保留30天后删除。
"""
PARKING = """江临市机动车停车管理办法（摘录）

第一章　总则

第一条　为规范机动车停车秩序，改善交通状况，根据有关法律法规，结合本市实际，制定本办法。

第二条　本办法适用于本市城区道路停车泊位、公共停车场和专用停车场的规划、建设、使用和管理。

第三条　市城市管理部门是停车管理的主管部门。公安机关交通管理部门负责道路停车泊位的设置和停车秩序管理。

第二章　停车泊位

第八条　消防通道、盲道、公共汽车站三十米以内的路段和学校出入口两侧五十米以内的路段，不得设置道路停车泊位。

第九条　道路停车泊位的使用时间由公安机关交通管理部门确定并公示。残疾人驾驶的专用车辆在道路停车泊位停放的，免收停车费。

第三章　收费

第十五条　道路停车按区域实行差别化收费。一类区域首小时6元，之后每小时9元；二类区域首小时4元，之后每小时6元；三类区域每小时2元。停放不足十五分钟的不收费。

第十六条　夜间（当日二十一时至次日七时）一类区域按次收费，每次不超过10元，其他区域免费。

第十七条　停车人应当在离场后七日内缴纳停车费；逾期未缴纳的，由主管部门书面催缴，经催缴仍不缴纳的，处应缴费用一倍以上三倍以下罚款。

第四章　法律责任

第二十三条　擅自设置、占用或者撤除道路停车泊位的，责令恢复原状，处五百元以上二千元以下罚款。

第二十四条　违反规定占用新能源汽车专用泊位的，责令驶离；拒不驶离的，处一百元罚款。

第二十六条　停车场经营者未公示收费标准的，由市场监督管理部门责令改正，可以处一千元以上五千元以下罚款。

第五章　附则

第三十条　本办法自2024年10月1日起施行。2013年颁布的《江临市停车场管理暂行办法》同时废止。
"""
FAQ = [
    (
        "F001",
        "网关",
        "HC200网关离线了怎么办？",
        "请先检查NET灯是否熄灭，确认网线和路由器正常；再断电等待30秒后重新上电。仍不能上线的，请提供机身序列号联系在线客服。",
    ),
    (
        "F002",
        "网关",
        "怎么导出网关的历史数据？",
        "登录云平台，进入“设备详情-历史数据”，选择时间范围后点击“导出”，单次最多导出31天的数据，格式为CSV。",
    ),
    ("F003", "订单", "下单后多久发货？", "现货商品在付款后24小时内发货，定制商品的发货周期为15个工作日。"),
    (
        "F004",
        "订单",
        "怎么修改收货地址？",
        "订单状态为“待发货”时可在“我的订单”中自行修改一次；已发货的请联系快递公司改派。",
    ),
    (
        "F005",
        "发票",
        "可以开专用发票吗？",
        "可以。请在“发票管理”中提交税号、开户行和账号，审核通过后3个工作日内开具电子专用发票。",
    ),
    (
        "F006",
        "退换",
        "收到货多久可以退？",
        "自签收之日起7天内、商品未拆封且不影响二次销售的，可以无理由退货，退货运费由买家承担。",
    ),
    ("F007", "退换", "退款多久到账？", "仓库验收退货后，退款在1至3个工作日内原路退回；信用卡支付的可能需要5个工作日。"),
    ("F008", "保修", "没有发票还能保修吗？", "可以，以机身序列号对应的出厂日期顺延3个月作为保修起算日。"),
    (
        "F009",
        "保修",
        "过了保修期维修怎么收费？",
        "检测费为每台80元，确认维修后检测费可抵扣维修费；更换主板的费用为整机价格的40%。",
    ),
    (
        "F010",
        "云平台",
        "云平台的基础版能接多少台设备？",
        "基础版最多接入20台设备，数据保存90天；专业版最多接入500台，数据保存2年。",
    ),
    (
        "F011",
        "云平台",
        "怎么给同事开子账号？",
        "由主账号在“组织管理-成员”中点击“邀请”，输入手机号并选择角色即可；专业版最多可开50个子账号。",
    ),
    ("F012", "云平台", "专业版一年多少钱？", "专业版的价格为每年5,980元，续费用户享九折；按月付费的为每月598元。"),
    ("F013", "技术支持", "远程协助要收费吗？", "质保期内每年提供3次免费远程协助，超出部分每次200元。"),
    ("F014", "技术支持", "周日有人值班吗？", "周日不提供人工服务，可在线提交工单，周一上午处理。"),
    ("F015", "物流", "能发海外吗？", "目前支持发往新加坡、马来西亚和泰国，运费到付，清关资料由买家提供。"),
    (
        "F016",
        "账号",
        "账号怎么注销？",
        "请用注册邮箱向service@haichuan.example发送注销申请，客服核实身份后15天内完成注销，注销后数据不可恢复。",
    ),
]


def make() -> None:
    (FILES / "市一医院就诊须知.html").write_text(HOSPITAL, encoding="utf-8")
    (FILES / "NimbusCloud-SLA.html").write_text(SLA, encoding="utf-8")
    (FILES / "产品周会纪要-20250418.md").write_text(MEETING, encoding="utf-8")
    (FILES / "IT服务台手册.md").write_text(IT_DESK, encoding="utf-8")
    (FILES / "停车管理办法-摘录.txt").write_bytes(PARKING.replace("\n", "\r\n").encode("gb18030"))
    lines = [
        json.dumps({"编号": code, "分类": kind, "问题": question, "回答": answer}, ensure_ascii=False)
        for code, kind, question, answer in FAQ
    ]
    (FILES / "客服常见问题.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
