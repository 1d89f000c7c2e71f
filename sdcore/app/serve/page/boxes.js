// --- boxes on the picture, and what is in them -----------------------------------------------------

const LEAST = 0.04; // of a side of the picture
let tool = null;    // "box" or "mask": what a pointer on the picture does

function takeUp(name) {
  tool = tool === name ? null : name;
  $("box-tool").setAttribute("aria-pressed", tool === "box");
  $("mask-tool").setAttribute("aria-pressed", tool === "mask");
  $("stage").classList.toggle("tool", tool !== null);
  showMaskTools();
}

function showRegions() {
  const focused = document.activeElement?.id;
  const colour = index => ({ "--pin": PINS[index % PINS.length] });
  $("regions-of").hidden = regions.length === 0;
  $("boxes").replaceChildren(...regions.map((each, index) => {
    const box = element("div", {
      id: `box-${index}`, className: "box", tabIndex: 0, style: colour(index),
      aria: { label: say("boxed")(index + 1, each.prompt) },
    }, element("b", { textContent: `${index + 1} ${each.prompt}` }), element("i"));
    box.setAttribute("role", "group");
    place(box, each.box);
    box.addEventListener("pointerdown", event => { if (tool === "box") drag(event, index, event.target.tagName === "I"); });
    box.addEventListener("keydown", event => nudge(event, index));
    return box;
  }));
  $("regions").replaceChildren(...regions.map((each, index) => {
    const input = element("input", { id: `region-${index}`, type: "text", value: each.prompt, aria: { label: say("there")(index + 1) } });
    let painted = each.prompt;
    const commit = () => { if (input.value.trim() !== painted.trim()) { painted = input.value; paint($("live").checked); } };
    input.addEventListener("input", () => { linked = null; each.prompt = input.value; $(`box-${index}`).firstChild.textContent = `${index + 1} ${input.value}`; });
    input.addEventListener("keydown", event => { if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); commit(); } });
    input.addEventListener("blur", commit);
    const away = element("button", { type: "button", textContent: "✕", aria: { label: say("away")(index + 1) } });
    away.onclick = () => remove(index);
    return element("li", {}, element("b", { textContent: index + 1, style: colour(index) }), input, away);
  }));
  if (focused?.match(/^(box|region)-/)) $(focused)?.focus();
}

function place(box, [left, top, right, bottom]) {
  Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
}

function at(event) { // of the picture, 0 to 1
  const { left, top, width, height } = $("stage").getBoundingClientRect();
  const part = (value, of) => Math.round(1000 * Math.min(1, Math.max(0, value / of))) / 1000;
  return [part(event.clientX - left, width), part(event.clientY - top, height)];
}

function moved([left, top, right, bottom], dx, dy) {
  const x = Math.min(1 - right, Math.max(-left, dx)), y = Math.min(1 - bottom, Math.max(-top, dy));
  return [left + x, top + y, right + x, bottom + y].map(side => Math.round(1000 * side) / 1000);
}

function sized([left, top, right, bottom], dx, dy) {
  const end = (begin, value) => Math.round(1000 * Math.min(1, Math.max(begin + LEAST, value))) / 1000;
  return [left, top, end(left, right + dx), end(top, bottom + dy)];
}

// Follows a pointer from where it went down: a new box, or one that is moved or sized.
function drag(event, index, sizes) {
  event.preventDefault();
  event.stopPropagation();
  const [x, y] = at(event), before = regions[index].box;
  follow(event, to => {
    const [dx, dy] = [at(to)[0] - x, at(to)[1] - y];
    regions[index].box = sizes ? sized(before, dx, dy) : moved(before, dx, dy);
    place($(`box-${index}`), regions[index].box);
  }, () => {
    $(`box-${index}`).focus();
    if (regions[index].prompt.trim() && String(before) !== String(regions[index].box)) paint($("live").checked);
  });
}

function follow(event, each, end) {
  $("stage").setPointerCapture(event.pointerId);
  const move = to => { if (to.pointerId === event.pointerId) each(to); };
  const stop = to => {
    if (to.pointerId !== event.pointerId) return;
    $("stage").removeEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) $("stage").removeEventListener(name, stop);
    end(to);
  };
  $("stage").addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) $("stage").addEventListener(name, stop);
}

function nudge(event, index) {
  const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
  if (event.key === "Delete") { event.preventDefault(); remove(index); }
  if (!step) return;
  event.preventDefault();
  const each = regions[index];
  each.box = event.shiftKey ? sized(each.box, ...step) : moved(each.box, ...step);
  place(event.currentTarget, each.box);
  if (each.prompt.trim()) later();
}

function addBox(box) {
  linked = null;
  regions.push({ prompt: "", box });
  showRegions();
  $(`region-${regions.length - 1}`).focus();
}

function remove(index) {
  const [gone] = regions.splice(index, 1);
  linked = null;
  showRegions();
  ($(`region-${Math.min(index, regions.length - 1)}`) ?? $("box-tool")).focus();
  if (gone.prompt.trim() && current) paint($("live").checked);
}

$("box-tool").addEventListener("click", event => {
  takeUp("box");
  if (event.detail === 0 && tool === "box") addBox([0.25, 0.25, 0.75, 0.75]); // by a key: one to be moved by keys
});
$("stage").addEventListener("pointerdown", event => {
  if (tool !== "box" || event.button !== 0) return;
  event.preventDefault();
  const [x, y] = at(event);
  const box = element("div", { className: "box", style: { "--pin": PINS[regions.length % PINS.length] } });
  $("boxes").append(box);
  const sides = to => { const [a, b] = at(to); return [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)]; };
  follow(event, to => place(box, sides(to)), to => {
    box.remove();
    const [left, top, right, bottom] = sides(to);
    if (right - left >= LEAST && bottom - top >= LEAST) addBox([left, top, right, bottom]);
  });
});
