"use strict";
const $ = id => document.getElementById(id);
const TEXTS = {
  en: {}, // what the page says already
  zh: {
    prompt: "提示词", negative: "要避开的内容", paint: "作画", stop: "停止", hold: "改词时其余不变", seed: "种子",
    images: "张数", steps: "步数", guidance: "引导强度", more: "更多", model: "模型", sampler: "采样器", levels: "噪声级别",
    width: "宽", height: "高", dialect: "提示词方言", from: "从一张图开始，或读取其设置", strength: "重画的程度",
    forget: "从噪声开始", words: "词", picture: "图", progress: "进度", history: "历史", save: "保存 PNG",
    hint: "指向一个词，看图在哪里读它；点击固定，英文的名词先已固定。在词上滚动滚轮或用滑块改变它的分量；双击改词。图从同一噪声重新画出。",
    "special-name": "开始、结束与填充",
    special: "每个提示词都有它们：开始标记不知道任何词，剩下的注意力归它；结束标记和后面的填充读过整个提示词。",
    "guided-from": "引导从", "guided-to": "引导到", interval: "在哪一段噪声级别里有引导：0 是纯噪声，1 是没有噪声。",
    "other-dialect": "并排另一种方言", lora: "LoRA", embedding: "学来的词", counts: "分量", put: "放进提示词",
    "none-here": "LoRA 和学来的词来自服务器用 --models-dir 得到的文件夹。", "let-go": "不用",
    see: "显示固定的词在哪里被读", tools: "工具", box: "画一个框", mask: "涂一个遮罩", share: "复制链接", link: "这次运行的链接",
    regions: "框里画所写的内容，其余画提示词；框不能重叠。方向键移动框，加 Shift 改变大小，Delete 删除。",
    brush: "画笔", rub: "擦除", "of-words": "固定的词被读的地方", "no-mask": "去掉遮罩", "only-masked": "只把遮罩周围放大来画",
    masks: "遮罩盖住的地方重画，其余一位不变。", split: "左边一个，右边另一个", beside: "并排", "no-other": "结束比较",
    "history-hint": "星标保留一次运行；⇄ 与正显示的那次比较。",
    "no-book": "解释这里所见的书页在 sdcore 仓库的 docs/book 里。",
    "book-run": "提示词怎样变成图", "book-guidance": "什么是引导", "book-words": "看与改", "book-special": "谁读什么",
    "book-noise": "噪声怎样变成图", "book-regions": "为什么一处能读自己的词", "book-mask": "画的是什么：潜变量",
    "book-compare": "改一个词会怎样", "book-history": "一次运行是什么", "book-learned": "模型怎样学习",
  },
};
const SAID = {
  en: {
    example: "a penguin to the left of a red apple in flat style, light blue background",
    waiting: n => `waiting, ${n} before`, step: (i, n) => `step ${i} of ${n}`, done: s => `done, seed ${s}`, lost: "The server does not answer.",
    weight: (w, x) => `how much “${w}” counts: ${x}`, begins: n => `begins from ${n}`, read: (n, o) => `settings read from ${n}, painted by ${o}`,
    star: "star", again: p => `show again: ${p}`, word: (w, s) => `${w}, ${s} % of the attention`, start: "start", end: "end and padding",
    auto: "as the model's", empty: "There is no prompt.", edit: w => `change the word ${w}`, result: p => `picture of: ${p}`,
    boxed: (n, p) => `box ${n}: ${p}`, there: n => `what is in box ${n}`, away: n => `take away ${n}`, choose: "choose …",
    turned: d => `The dialect is now ${d}, which this needs.`, strong: (n, x) => `how much of ${n}: ${x}`,
    shown: "the picture that is shown", copied: "The link is copied.", here: "The link is below.", linked: "A run from a link: Paint paints it.",
    pixels: "A run that begins from a picture cannot be a link, which holds no pixels: share the PNG.", also: n => `also: ${n}`,
    compare: p => `compare with: ${p}`, one: "left", two: "right", same: "The settings are the same.",
    nothing: "No word is pinned.", draft: "a draft of few steps; the picture is being painted", unread: "The link cannot be read.",
  },
  zh: {
    example: "一只企鹅在红苹果的左边，扁平风格，浅蓝色背景",
    waiting: n => `等待中，前面 ${n} 个`, step: (i, n) => `第 ${i} 步，共 ${n} 步`, done: s => `完成，种子 ${s}`, lost: "服务器没有回应。",
    weight: (w, x) => `“${w}”的分量：${x}`, begins: n => `从 ${n} 开始`, read: (n, o) => `已读取 ${n} 的设置，由 ${o} 画成`,
    star: "标星", again: p => `再看：${p}`, word: (w, s) => `${w}，占注意力的 ${s} %`, start: "开始", end: "结束与填充",
    auto: "与模型相同", empty: "没有提示词。", edit: w => `改词 ${w}`, result: p => `图：${p}`,
    boxed: (n, p) => `框 ${n}：${p}`, there: n => `框 ${n} 里是什么`, away: n => `去掉 ${n}`, choose: "选择……",
    turned: d => `方言现在是 ${d}，这里需要它。`, strong: (n, x) => `${n} 的分量：${x}`,
    shown: "正显示的图", copied: "链接已复制。", here: "链接在下面。", linked: "来自链接的一次运行：按“作画”即可画出。",
    pixels: "从图开始的运行不能成为链接，链接里没有像素：请分享 PNG。", also: n => `还有：${n}`,
    compare: p => `与它比较：${p}`, one: "左", two: "右", same: "设置相同。",
    nothing: "没有固定的词。", draft: "几步画成的草图；正在画完整的图", unread: "链接读不了。",
  },
};
const PINS = ["#e6550d", "#3182bd", "#31a354", "#c51b8a", "#b8860b", "#756bb1"];
let language = "en";
const say = name => SAID[language][name];

for (const each of document.querySelectorAll("[data-say]")) TEXTS.en[each.dataset.say] = each.textContent;
for (const each of document.querySelectorAll("[data-say-label]")) TEXTS.en[each.dataset.sayLabel] ??= each.getAttribute("aria-label");

function speak(name) {
  language = name;
  document.documentElement.lang = name;
  for (const each of document.querySelectorAll("[data-say]")) each.textContent = TEXTS[name][each.dataset.say];
  for (const each of document.querySelectorAll("[data-say-label]")) each.setAttribute("aria-label", TEXTS[name][each.dataset.sayLabel]);
  for (const each of document.querySelectorAll("a.book")) each.href = `book/${each.dataset.page}${name === "zh" ? ".zh" : ""}.md`;
  for (const id of ["method", "schedule"]) sayFirst(id, "auto");
  for (const id of ["lora", "embedding"]) sayFirst(id, "choose");
  $("prompt").placeholder = SAID[name].example;
  $("language").textContent = name === "en" ? "中文" : "English";
  $("language").lang = name === "en" ? "zh" : "en";
  localStorage.setItem("language", name);
  showWords();
  showRegions();
  showLoras();
  showKept();
  showBegun();
  showPast();
  showCompared();
}

function sayFirst(id, name) {
  const first = $(id).options[0];
  if (first) first.textContent = say(name);
}

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function element(name, properties = {}, ...inside) {
  const { style = {}, aria = {}, ...plain } = properties;
  const made = Object.assign(document.createElement(name), plain);
  for (const [key, value] of Object.entries(style)) made.style.setProperty(key, value);
  for (const [key, value] of Object.entries(aria)) made.setAttribute(`aria-${key}`, value);
  made.append(...inside);
  return made;
}
