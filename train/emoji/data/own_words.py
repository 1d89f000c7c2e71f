"""What newcomers say around the things that they ask for: words that decide, and words that do not.

`EN` and `ZH` hold the words of each language by what they do. Of the words that decide nothing, and
of the (colour, thing) and (number, thing) pairs, a share is held out: training never says it.
"""

from __future__ import annotations

import hashlib

HELD_OUT = 0.2  # share of each list


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("|"))


GROUNDS = {  # what people call a background -> the backgrounds that it may be
    "blue": ("light blue", "dark blue"),
    "green": ("light green", "dark green"),
    "grey": ("gray",),
    "navy": ("dark blue",),
    "sky blue": ("light blue",),
    "violet": ("purple",),
}
CHINESE_GROUNDS = {
    "蓝色": ("light blue", "dark blue"),
    "绿色": ("light green", "dark green"),
    "天蓝色": ("light blue",),
    "粉红色": ("pink",),
    "白": ("white",),
    "黑": ("black",),
    "红": ("red",),
}
CHINESE_COLORS = {
    "red": ("红色的", "红色", "红"),
    "orange": ("橙色的", "橙色", "橘色的"),
    "yellow": ("黄色的", "黄色", "黄"),
    "green": ("绿色的", "绿色", "绿"),
    "blue": ("蓝色的", "蓝色", "蓝"),
    "purple": ("紫色的", "紫色", "紫"),
    "pink": ("粉色的", "粉红色的", "粉色"),
    "brown": ("棕色的", "褐色的", "棕色"),
    "black": ("黑色的", "黑色", "黑"),
    "white": ("白色的", "白色", "白"),
    "gray": ("灰色的", "灰色", "灰"),
}
COLORS = {"gray": ("gray", "grey"), "purple": ("purple", "violet")}  # others: their name alone
SIZES = {
    "big": ("big", "huge", "large", "giant", "enormous", "very big"),
    "small": ("small", "tiny", "mini", "miniature", "very small"),
}
CHINESE_SIZES = {
    "big": ("大大的", "巨大的", "很大的", "超大的"),
    "small": ("小小的", "迷你的", "很小的", "微小的"),
}
PLACES = {
    "center": ("in the center", "in the middle", "centered"),
    "left": ("on the left", "on the left side", "to the left", "left"),
    "right": ("on the right", "on the right side", "to the right", "right"),
    "top": ("at the top", "on top", "top"),
    "bottom": ("at the bottom", "bottom", "down"),
}
NUMBERS = {
    2: ("two", "two", "two", "2", "a pair of", "a couple of"),
    3: ("three", "three", "three", "3", "some", "several", "a few", "many", ""),
}
CHINESE_NUMBERS = {2: ("两", "两", "两", "2"), 3: ("三", "三", "三", "3", "几")}
JOINED = ("and", "and", "and", "and", "with", "with", "next to", "beside", "near", "&", ",", "plus")
CHINESE_JOINED = ("和", "和", "和", "与", "跟", "，", "、", "旁边有")

OPENINGS = _list(
    """
    a picture of|a photo of|an image of|a drawing of|an illustration of|an emoji of|an icon of|
    a cartoon of|a sketch of|a sticker of|a portrait of|a render of|clipart of|
    emoji of|picture of|photo of|image of|draw|draw me|please draw|paint|please paint|paint me|
    make|make me|create|generate|show me|show|give me|i want|i need|i would like|
    i'd like to see|can you draw|can you make|could you draw|could you paint|let's see|imagine|
    just|only|there is|this is|here is|hello|hi|hey|my|the|your|our|one|another|
    a nice picture of|a beautiful photo of|a simple icon of|a pretty drawing of|close up of|
    a view of|something like
    """
)
ENDINGS = _list(
    """
    please|pls|thanks|thank you|high quality|best quality|highly detailed|detailed|
    very detailed|4k|8k|hd|uhd|high resolution|masterpiece|digital art|concept art|
    trending on artstation|emoji|icon|clipart|logo|photo|illustration|drawing|cartoon|
    realistic|photorealistic|ultra realistic|3d|3d render|octane render|unreal engine|
    studio lighting|soft lighting|cinematic|dramatic|epic|cute|kawaii|adorable|colorful|
    colourful|vibrant|minimalistic|minimal|simple|clean|sharp focus|isolated|award winning|
    stunning|aesthetic|bokeh|macro|close up|wide angle|professional|hand drawn|watercolor|
    oil paint|vector|pixel|fantasy|sci fi|anime|modern|vintage|retro|in the forest|
    in the garden|in the city|in the kitchen|in the park|in the desert|in the sky|in space|
    in the snow|in the rain|at the beach|at night|in summer|in winter|in spring|in autumn|
    in the morning|in the evening|outdoors|indoors|for kids|for my friend|for a card|
    on a sunny day|looking happy|smiling
    """
)
ADJECTIVES = _list(
    """
    cute|little|cute little|lovely|beautiful|pretty|nice|cool|funny|happy|sad|sleepy|hungry|
    friendly|scary|spooky|fierce|wild|tame|brave|clever|smart|silly|crazy|lazy|busy|proud|shy|
    gentle|fluffy|furry|soft|round|shiny|sparkly|glowing|magic|magical|mysterious|elegant|
    fancy|plain|old|young|new|ancient|rusty|dirty|fresh|tasty|yummy|delicious|juicy|ripe|cold|
    warm|frozen|wet|dry|fast|slow|quick|strong|tough|heavy|thin|fat|chubby|tall|short|long|
    wide|bright|wooden|plastic|metal|royal|majestic|noble|famous|favorite|amazing|awesome|
    great|good|perfect|wonderful|gorgeous|fabulous|fantastic|incredible|charming|kind|calm|
    angry looking|evil|creepy|weird|strange|unusual|typical|classic|lonely|single|flying|
    running|sleeping|dancing|jumping|swimming|singing|smiling|laughing|waving|floating|
    standing|sitting|hidden|secret|lost|expensive|cheap|rich|poor|arctic|nordic|african|asian|
    american|european|french|italian|chinese|japanese|seasonal|festive|cozy|dreamy|quiet|
    noisy|loud|huggable|plump|jolly|merry|cheerful|grumpy|curious|playful|tired|excited
    """
)
CHINESE_OPENINGS = _list(
    """
    画一下|请画|请帮我画|帮我画|给我画|画|我想要|我要|我想看|来|生成|请生成|做|给我|显示|请给我|这是|
    这里有|有|就|能不能画|可以画
    """
)
CHINESE_ENDINGS = _list(
    """
    谢谢|高清|超清|高质量|最高质量|细节丰富|精致|杰作|写实|逼真|卡通|插画|手绘|简约|简单|可爱|
    萌|漂亮|唯美|梦幻|鲜艳|彩色|温馨|表情|图标|头像|壁纸|照片|图片|特写|清晰|大师作品|电影感|
    柔和的光|在森林里|在花园里|在城市里|在厨房里|在公园里|在沙漠里|在天空中|在雪地里|在海边|
    在夜里|夏天|冬天|春天|秋天|早上|晚上|给孩子看|开心|微笑
    """
)
CHINESE_FRAMES = (  # around what is asked for
    "{}的图片",
    "{}的照片",
    "{}的图标",
    "{}的插图",
    "一张{}的图片",
    "一张{}的照片",
    "一幅{}的插画",
    "一个{}的表情",
)
CHINESE_ADJECTIVES = _list(
    """
    可爱的|漂亮的|美丽的|好看的|快乐的|开心的|伤心的|有趣的|搞笑的|酷酷的|帅气的|聪明的|勇敢的|
    温柔的|凶猛的|可怕的|神秘的|梦幻的|闪亮的|发光的|毛茸茸的|胖胖的|圆圆的|新鲜的|好吃的|
    美味的|热的|冷的|新的|旧的|古老的|现代的|卡通|普通的|特别的|奇怪的|优雅的|华丽的|简单的|
    懒洋洋的|害羞的|孤独的|飞翔的|奔跑的|睡觉的|微笑的|著名的|最好的|超级可爱的|非常可爱的
    """
)


def held_out(kind: str, name: str) -> bool:
    """Whether training never says this: decided by a hash, the same everywhere."""
    return hashlib.sha256(f"{kind}/{name}".encode()).digest()[0] < HELD_OUT * 256


def said(words: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the words that decide nothing which training says."""
    return tuple(word for word in words if not held_out("filler", word))


def english_words() -> list[str]:
    """All that English captions of newcomers say beside names and backgrounds."""
    lists = [*SIZES.values(), *PLACES.values(), *NUMBERS.values(), *COLORS.values(), JOINED]
    lists += [said(OPENINGS), said(ENDINGS), said(ADJECTIVES), tuple(GROUNDS)]
    lists += [tuple(CHINESE_COLORS), ("against a background color",)]  # their keys are English
    return sorted({word for words in lists for text in words for word in text.split()})


def of_many() -> set[str]:
    """The words that ask for three of a thing, or more."""
    asked = (*NUMBERS[3], *CHINESE_NUMBERS[3])
    return {word for text in asked for word in text.split()} - {"a"}


def chinese_words() -> list[str]:
    """The same for Chinese, which is written without spaces."""
    lists = [*CHINESE_COLORS.values(), *CHINESE_SIZES.values(), CHINESE_JOINED]
    lists += [said(CHINESE_OPENINGS), said(CHINESE_ENDINGS), said(CHINESE_ADJECTIVES)]
    lists += [tuple(CHINESE_GROUNDS), ("背景上的", "背景上", "底", "的图片", "的照片", "的图标")]
    lists += [("的插图", "一张", "一幅", "的插画", "的表情", "两", "三", "几", "只有")]
    return sorted({word.strip("，、") for words in lists for word in words} - {""})
