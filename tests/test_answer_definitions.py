"""What a file says of the names that it uses."""

import pytest

from peg_rag.answering.definitions import find_definitions


@pytest.mark.parametrize(
    ("text", "name", "meaning"),
    [
        ("“假日”指周六、周日和法定节假日，初一到初六叫“大假”。", "假日", "周六、周日和法定节假日"),
        ("“假日”指周六、周日和法定节假日，初一到初六叫“大假”。", "大假", "初一到初六"),
        ("春节叫“大假”，别的日子都是“平日”。", "平日", "别的日子"),
        ("型号：DJ-20（单喷头）、DJ-30C（双喷头带恒温仓）", "DJ-30C", "双喷头带恒温仓"),
        ("“童声组”不满13周岁，“少年组”13至18周岁。", "少年组", "13至18周岁"),
        ("本办法所称\n旺季是指4月至10月。", "旺季", "4月至10月"),
        ("社员（交过股金的户）每亩减5元。", "社员", "交过股金的户"),
        ("生活能力61分以上的为“轻助”，40分以下的为“重助”。", "重助", "40分以下"),
        ("“旺月”指3月。“假日”指周六、周日，其余为“平日”。", "平日", "假日以外"),
        ("签有协议的为“签约客户”，其他客户称“散客”。", "散客", "签约客户以外"),
    ],
)
def test_names_are_defined(text: str, name: str, meaning: str) -> None:
    assert dict(find_definitions(text))[name] == meaning


def test_the_path_of_a_heading_is_no_definition() -> None:
    assert not find_definitions("骨灰寄存（南 > 六 骨灰寄存）")


@pytest.mark.parametrize("text", ["向应急指挥部报告火情", "场地（元/天）：300", "“好日子”只能改一次。"])
def test_what_defines_nothing(text: str) -> None:
    assert not dict(find_definitions(text)).keys() & {"向应急", "场地", "好日子"}


def test_a_definition_in_words_comes_before_a_bracket() -> None:
    text = "平日（一晚）: 78元。“平日”指周一到周五。"
    assert dict(find_definitions(text))["平日"] == "周一到周五"
