// --- a picture and its words -----------------------------------------------------------------------

let words = [], hovered = null, chosen = null, pins = [], seen = null;

function showPicture(url, prompt = "") {
  $("picture").src = url;
  $("picture").alt = prompt && say("result")(prompt);
  $("picture").onload = shape;
}

function shape() {
  const { naturalWidth: w, naturalHeight: h } = $("picture");
  if (!w) return;
  for (const each of [$("picture"), $("other")]) each.classList.toggle("small", w <= 64);
  $("stage").style.aspectRatio = `${w * ($("stage").classList.contains("beside") ? 2 : 1)} / ${h}`;
}

function show(one) { // of past, or a draft, which has a picture and no PNG
  const same = current?.prompt === one.prompt;
  current = one;
  compare(null);
  showPicture(one.picture ?? `data:image/png;base64,${one.png}`, one.prompt);
  words = one.words.map(word => ({ ...word, levels: Uint8Array.from(atob(word.map), c => c.charCodeAt(0)) }));
  if (one.png) $("save").href = $("picture").src;
  $("save").hidden = $("share").hidden = !one.png;
  $("link-shown").hidden = true;
  pins = pins.filter(name => words.some(word => word.word === name));
  if (!same) hovered = null;
  showWords();
  showPast();
  draw();
}

function pinNouns(one) { // at the first sight of a prompt
  if (one.prompt === seen) return;
  seen = one.prompt;
  pins = [...new Set(one.words.filter(word => word.noun).map(word => word.word))].slice(0, PINS.length);
}

function textsOf(one) { return [one.prompt, ...(one.job.regions ?? []).map(each => each.prompt)]; }

function chip(word, index, name) {
  const scale = scales[word.word] ?? 1;
  const pin = pins.indexOf(word.word);
  const percent = (100 * word.share).toFixed(1);
  const button = element("button", {
    type: "button", className: "word" + (word.special ? " special" : "") + (word.cut ? " cut" : ""),
    aria: { label: say("word")(name, percent), pressed: pin >= 0 }, textContent: name,
  });
  button.dataset.index = index;
  if (word.special) button.append(element("small", { textContent: `${percent} %` }));
  if (!word.special && scale !== 1) button.append(element("small", { textContent: `×${scale}` }));
  if (pin >= 0) button.style.setProperty("--pin", PINS[pin % PINS.length]);
  button.classList.toggle("shown", hovered === index);
  return button;
}

function showWords() {
  if ($("chips").querySelector(".edit")) return; // somebody types in one of them
  const focused = document.activeElement?.dataset?.index;
  const parts = [];
  (current ? textsOf(current) : []).forEach((text, of) => {
    if (of) parts.push("\n", element("span", { className: "of", textContent: of, style: { "--pin": PINS[(of - 1) % PINS.length] } }), " ");
    let done = 0;
    words.forEach((word, index) => {
      if (word.special || word.of !== of) return;
      if (word.start > done) parts.push(text.slice(done, word.start));
      parts.push(chip(word, index, word.word));
      done = Math.max(done, word.end);
    });
    parts.push(text.slice(done));
  });
  $("chips").replaceChildren(...parts);
  const special = words.flatMap((word, index) => (word.special ? [chip(word, index, say(index ? "end" : "start"))] : []));
  $("special").replaceChildren(...special);
  if (focused !== undefined) document.querySelector(`.word[data-index="${focused}"]`)?.focus();
  const known = chosen !== null && words[chosen] && !words[chosen].special;
  $("one").hidden = !known;
  if (known) {
    const scale = scales[words[chosen].word] ?? 1;
    $("weight").value = scale;
    $("one-name").textContent = say("weight")(words[chosen].word, scale);
  }
}

function pinned() { return pins.map(name => words.findIndex(word => word.word === name)).filter(index => index >= 0); }

function draw() {
  const shown = hovered !== null ? [hovered] : $("see").checked ? pinned() : [];
  const canvas = $("map");
  canvas.hidden = shown.length === 0;
  $("stage").classList.toggle("tinted", hovered !== null);
  $("stage").classList.toggle("half", hovered === null && shown.length > 0);
  if (canvas.hidden) return;
  const [h, w] = words[shown[0]].grid;
  canvas.width = w; canvas.height = h;
  const image = new ImageData(w, h);
  for (const index of shown) {
    const pin = pins.indexOf(words[index].word);
    const hex = PINS[(pin < 0 ? 0 : pin) % PINS.length];
    const rgb = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
    for (let place = 0; place < w * h; place++) {
      const level = 215 * (words[index].levels[place] / 255) ** (hovered !== null ? 1 : 0.7);
      if (level <= image.data[4 * place + 3]) continue;
      image.data.set([...rgb, level], 4 * place);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function indexOf(target) {
  const button = target.closest?.(".word");
  return button ? Number(button.dataset.index) : null;
}

function mark(index) {
  hovered = index;
  for (const each of document.querySelectorAll(".word")) each.classList.toggle("shown", Number(each.dataset.index) === index);
  draw();
}

function scale(index, value) {
  const word = words[index].word;
  scales[word] = Math.min(4, Math.max(-2, Math.round(value * 4) / 4));
  chosen = index;
  showWords();
  later();
}

function edit(index) {
  const { word, start, end, special, of } = words[index];
  if (special) return;
  const input = element("input", { className: "edit", value: word, aria: { label: say("edit")(word) } });
  document.querySelector(`.word[data-index="${index}"]`).replaceWith(input);
  input.focus();
  input.select();
  const finish = keep => {
    input.onblur = null;
    const text = textsOf(current)[of], to = input.value.trim();
    input.remove();
    if (keep && to && to !== word) {
      const whole = text.slice(0, start) + to + text.slice(end);
      if (of === 0) $("prompt").value = whole;
      else for (const each of regions) if (each.prompt.trim() === text) each.prompt = whole;
      delete scales[word];
      pins = pins.map(each => (each === word ? to : each));
      showRegions();
      paint($("live").checked);
    }
    showWords();
  };
  input.onblur = () => finish(true);
  input.onkeydown = event => {
    if (event.key === "Enter") { event.preventDefault(); finish(true); }
    if (event.key === "Escape") { event.stopPropagation(); finish(false); }
  };
}

function pin(word) { pins = pins.includes(word) ? pins.filter(each => each !== word) : [...pins, word]; }

for (const id of ["chips", "special"]) {
  const group = $(id);
  group.addEventListener("pointerover", event => { if (event.pointerType === "mouse") mark(indexOf(event.target)); });
  group.addEventListener("pointerleave", () => mark(null));
  group.addEventListener("focusin", event => { const at = indexOf(event.target); if (at !== null && event.target.matches(":focus-visible")) mark(at); });
  group.addEventListener("focusout", () => { if (hovered !== null) mark(null); });
  group.addEventListener("click", event => {
    const index = indexOf(event.target);
    if (index === null || event.detail > 1) return;
    pin(words[index].word);
    chosen = index;
    showWords();
    draw();
  });
  group.addEventListener("dblclick", event => {
    const index = indexOf(event.target);
    if (index === null || words[index].special) return;
    pin(words[index].word); // as it was before the first of the two clicks
    showWords();
    draw();
    edit(index);
  });
  group.addEventListener("keydown", event => {
    const index = indexOf(event.target);
    if (index === null) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) document.querySelector(`.word[data-index="${index + step}"]`)?.focus();
    const more = { "+": 0.25, "=": 0.25, "-": -0.25 }[event.key];
    if (more && !words[index].special) scale(index, (scales[words[index].word] ?? 1) + more);
    if (event.key === "F2") { event.preventDefault(); edit(index); }
  });
}
$("chips").addEventListener("wheel", event => {
  const index = indexOf(event.target);
  if (index === null) return;
  event.preventDefault();
  scale(index, (scales[words[index].word] ?? 1) - 0.25 * Math.sign(event.deltaY));
}, { passive: false });
$("weight").addEventListener("input", () => { if (chosen !== null) scale(chosen, Number($("weight").value)); });
$("see").addEventListener("change", draw);
document.addEventListener("keydown", event => {
  if (event.key === "Escape") { pins = []; showWords(); draw(); }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); paint(); }
});
