"""Plausible Chinese names for instruments that need one."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES: Final = _words(
    "华 中 国 东 南 西 北 天 海 江 金 银 长 新 大 恒 永 安 泰 兴 万 宏 鼎 "
    "科 远 瑞 嘉 宝 德 信 联 通 同 光 明 盛 龙 凤 云 山 湖 京 沪 浙 苏 粤 "
    "川 渝 湘 鄂 皖 赣 闽 鲁 豫 冀 晋 陕 甘 青 黔 滇 桂 琼 辽 吉 蒙 宁 博"
)
MIDDLES: Final = _words("达 星 源 峰 润 诚 力 康 特 创")
TRADES: Final = _words(
    "科技 股份 电子 药业 生物 智能 材料 机械 电气 能源 环保 软件 信息 通信 汽车 "
    "化工 新材 重工 精密 光电 食品 酒业 农业 纺织 服饰 传媒 物流 航空 港口 高速 "
    "地产 建设 水泥 钢铁 铜业 铝业 黄金 煤业 石化 燃气 水务 电力 电网 证券 银行 "
    "保险 医疗 器械 医药 健康 教育 旅游 零售 家居 家电 芯片 半导体 激光 数控 轴承"
)
ETF_THEMES: Final = _words(
    "沪深300 中证500 中证1000 上证50 科创50 创业板 红利 医药 芯片 半导体 "
    "军工 新能源 光伏 酒 消费 银行 证券 地产 煤炭 钢铁 有色 化工 农业 传媒 游戏 "
    "通信 5G 软件 人工智能 机器人 黄金 恒生科技 纳指 标普 央企 国企 低波 成长 价值 "
    "电池"
)
ETF_HOUSES: Final = _words(
    "华夏 易方达 华泰柏瑞 南方 嘉实 国泰 广发 富国 博时 汇添富 鹏华 银华 招商"
)
INDUSTRIES: Final = _words(
    "银行 非银金融 食品饮料 医药生物 电子 计算机 通信 传媒 电力设备 机械设备 汽车 "
    "家用电器 基础化工 有色金属 钢铁 煤炭 石油石化 公用事业 交通运输 房地产 建筑材料 "
    "国防军工 农林牧渔 商贸零售"
)

_COMPANIES: Final = len(PLACES) * len(MIDDLES) * len(TRADES)


def company(number: int) -> str:
    """A company's short name; different for every number below about 35,000."""
    # 7919 shares no factor with the count, so the steps visit every combination.
    n = number * 7919 % _COMPANIES
    n, trade = divmod(n, len(TRADES))
    place, middle = divmod(n, len(MIDDLES))
    return PLACES[place] + MIDDLES[middle] + TRADES[trade]


def fund(number: int) -> str:
    """An ETF's short name."""
    house, theme = divmod(number, len(ETF_THEMES))
    return ETF_THEMES[theme] + "ETF" + ETF_HOUSES[house % len(ETF_HOUSES)]
