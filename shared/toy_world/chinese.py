"""The toy world in Chinese: names, captions and questions that say the same as the English ones.

Used by `conversations.py` and `qwen2.py`; needs nothing but the Python standard library.
"""

import random
from collections import Counter
from collections.abc import Sequence

from shared.toy_world.questions import Question, position
from shared.toy_world.shapes import Item, Scene, plural

SHAPES_ZH = {
    "circle": "圆形",
    "square": "方块",
    "triangle": "三角形",
    "star": "星形",
    "heart": "心形",
    "cross": "十字",
    "ring": "圆环",
    "diamond": "菱形",
    "crescent": "月牙",
    "arrow": "箭头",
    "frame": "方框",
    "stripes": "条纹",
}
COLORS_ZH = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "cyan": "青色",
}
CORNERS_ZH = {
    "top left": "左上角",
    "top right": "右上角",
    "bottom left": "左下角",
    "bottom right": "右下角",
}
NUMBERS_ZH = ("零个", "一个", "两个", "三个")
DESCRIBE_ZH = ("请描述这张图片。", "这张图片里有什么？", "图中有什么？")

# what questions, answers and users say besides names
OTHER_WORDS_ZH = """
图中 图形 图片 这张 两张 一张 第一张 第二张 第三张 哪张 哪里 什么 颜色 请 描述 里 有 没有
是 不是 吗 的 和 在 几个 多少 零个 一个 两个 三个 四个 五个 用 中文 英文 说 翻译 成 这 那 它
都 也 还 个 张 中 上面 下面 左边 右边 中间 回答 问题 你 我 好 你好 谢谢 不 对 错 看 看到
可以 呢 了 我们 告诉 形状
"""
# template -> question and how its answer is said; names as in questions.TEMPLATES
_QUESTIONS_ZH = {
    "is there a shape": "图中有{shape}吗？",
    "is there a colored shape": "图中有{color}的{shape}吗？",
    "is the shape colored": "{shape}是{color}的吗？",
    "are there any colored": "图中有{color}的图形吗？",
    "how many shapes": "图中有几个图形？",
    "how many of a color": "图中有几个{color}的图形？",
    "how many of a shape": "图中有几个{shape}？",
    "what color is the shape": "{shape}是什么颜色？",
    "what shape is colored": "{color}的是什么图形？",
    "where is the shape": "{shape}在哪里？",
    "what is in the corner": "{corner}是什么图形？",
}
_NAMES = {**SHAPES_ZH, **COLORS_ZH, **CORNERS_ZH}


def question_zh(question: Question) -> tuple[str, str]:
    """(question, answer) in Chinese. Raises KeyError for a template that has no translation."""
    words = question.text.lower().rstrip("?").split()
    text = " ".join(words)
    shape = next((z for e, z in SHAPES_ZH.items() if e in words or plural(e) in words), "")
    color = next((z for e, z in COLORS_ZH.items() if e in words), "")
    corner = next((z for e, z in CORNERS_ZH.items() if e in text), "")
    asked = _QUESTIONS_ZH[question.template].format(shape=shape, color=color, corner=corner)
    return asked, _answer_zh(question)


def _answer_zh(question: Question) -> str:
    if question.answer_type == "number":
        return NUMBERS_ZH[int(question.answer)]
    if question.answer_type == "yes/no":
        if question.template == "is the shape colored":
            return {"yes": "是", "no": "不是"}[question.answer]
        return {"yes": "有", "no": "没有"}[question.answer]
    return _NAMES[question.answer]


def caption_zh(scene: Scene, rng: random.Random) -> str:
    """'一个红色的星形和两个蓝色的十字', or with corners: '左上角有一个红色的星形，…'."""
    order = rng.sample(scene.items, len(scene.items))
    if rng.random() < 0.5:
        return "，".join(_placed_zh(item) for item in order)
    counts = Counter((i.color, i.shape) for i in order)
    return _join_zh(
        [f"{NUMBERS_ZH[n]}{COLORS_ZH[c]}的{SHAPES_ZH[s]}" for (c, s), n in counts.items()]
    )


def _placed_zh(item: Item) -> str:
    corner = position(item)
    where = f"{CORNERS_ZH[corner]}有" if corner else "有"
    return f"{where}一个{COLORS_ZH[item.color]}的{SHAPES_ZH[item.shape]}"


def _join_zh(phrases: Sequence[str]) -> str:
    if len(phrases) <= 2:
        return "和".join(phrases)
    return "、".join(phrases[:-1]) + "和" + phrases[-1]


def words_zh() -> list[str]:
    """Every Chinese word of the toy world, each one token of the tokenizer: longest first."""
    words = dict.fromkeys((*_NAMES.values(), *NUMBERS_ZH, *OTHER_WORDS_ZH.split()))
    return sorted(words, key=lambda word: (-len(word), word))
