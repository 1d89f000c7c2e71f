"use strict";
// One of the components, over the numbers that the page brings. Without it the table is the page.
const { kind, words: say, ...data } = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("live");

function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given))
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  element.append(...children);
  return element;
}

const mix = (from, to, part) => from.map((level, i) => level + part * (to[i] - level));
const WHITE = [255, 255, 255], BLUE = [16, 78, 139], RED = [179, 38, 30];
const HOT = [WHITE, [253, 187, 99], [215, 60, 40], [90, 10, 40]];
const blue = share => mix(WHITE, BLUE, Math.min(Math.max(share, 0), 1));
const signed = value => mix(WHITE, value < 0 ? RED : BLUE, Math.min(Math.abs(value), 1));
function hot(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HOT.length - 1), below = Math.min(Math.floor(at), HOT.length - 2);
  return mix(HOT[below], HOT[below + 1], at - below);
}
const css = color => `rgb(${color.map(Math.round).join(",")})`;

function cells(canvas, width, colors) {
  canvas.width = width;
  canvas.height = colors.length / width;
  const pixels = new ImageData(width, canvas.height);
  colors.forEach((color, i) => pixels.data.set([...color, 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
const strip = values => cells(make("canvas", { class: "strip", "aria-hidden": "true" }), values.length, values.map(signed));

// Radio buttons: arrows go from one to the next.
function choice(name, options, chosen, onchange) {
  const radios = options.map((label, i) => make("label", {},
    make("input", { type: "radio", name, checked: i === chosen, onchange: () => onchange(i) }), label));
  return make("fieldset", {}, make("legend", {}, name), ...radios);
}
function tick(name, on, onchange) {
  return make("label", {}, make("input", { type: "checkbox", checked: on, onchange: event => onchange(event.target.checked) }), name);
}
function slider(name, least, most, value, said, onchange) {
  const shown = make("output", {}, said(value));
  const input = make("input", { type: "range", min: least, max: most, step: 1, value, "aria-valuetext": said(value), oninput: event => {
    const now = Number(event.target.value);
    shown.textContent = said(now);
    event.target.setAttribute("aria-valuetext", said(now));
    onchange(now);
  } });
  return make("label", { class: "slider" }, make("span", {}, name), input, shown);
}
function bar(name, share, text) {
  const line = make("i");
  line.style.width = `${100 * Math.min(share, 1)}%`;
  return make("div", { class: "bar" }, make("span", {}, name), make("span", {}, line), make("span", {}, text));
}
const percent = share => `${Math.round(100 * share)} %`;
const number = value => String(Math.round(100 * value) / 100);
function softmax(scores) {
  const most = Math.max(...scores), powers = scores.map(score => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
}
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const picture = (source, said) => make("figure", {}, make("img", { src: source, alt: said }), make("figcaption", {}, said));

// Queries, keys and values that can be changed.
function hand() {
  const { tokens, q, k, v } = data, out = make("div", { "aria-live": "polite" });
  const field = (row, i, name) => make("input", { type: "number", step: 1, value: row[i], "aria-label": `${name} ${i + 1}`, oninput: event => {
    row[i] = Number(event.target.value) || 0;
    show();
  } });
  const fields = (row, name) => make("td", {}, ...row.map((_, i) => field(row, i, name)));
  const head = make("tr", {}, ...["", say.key, say.value].map(text => make("th", { scope: "col" }, text)));
  const rows = tokens.map((token, t) => make("tr", {}, make("th", { scope: "row" }, token),
    fields(k[t], `${say.key} ${token}`), fields(v[t], `${say.value} ${token}`)));
  function show() {
    const scores = k.map(key => dot(q, key) / Math.sqrt(q.length)), weights = softmax(scores);
    const sum = v[0].map((_, i) => dot(weights, v.map(value => value[i])));
    out.replaceChildren(
      ...tokens.map((token, t) => bar(`${token}: ${number(scores[t])}`, weights[t], `${(100 * weights[t]).toFixed(1)} %`)),
      make("p", {}, `${say.sum} (${sum.map(number).join(", ")})`));
  }
  root.append(make("label", {}, `${say.query} `, ...q.map((_, i) => field(q, i, say.query))),
    make("div", { class: "scroll" }, make("table", {}, head, ...rows)), out);
  show();
}

// What a run passes on from step to step, what it expects, and where a word is read meanwhile.
function steps() {
  const state = { step: 0, word: 0 }, map = make("canvas"), name = make("figcaption");
  const pictures = ["latents", "expected"].map(part => picture(data.frames[0][part], say[part]));
  const most = data.words_read.map((_, word) => Math.max(...data.frames.map(frame => Math.max(...frame.maps[word]))));
  function show() {
    const frame = data.frames[state.step];
    ["latents", "expected"].forEach((part, i) => { pictures[i].firstChild.src = frame[part]; });
    cells(map, 8, frame.maps[state.word].map(value => hot(value / most[state.word])));
    name.textContent = say.read.replace("{word}", data.words_read[state.word]);
  }
  const said = step => say.step.replace("{step}", step + 1);
  root.append(slider(say.steps, 0, data.frames.length - 1, 0, said, step => { state.step = step; show(); }),
    choice(say.word, data.words_read, 0, word => { state.word = word; show(); }),
    make("div", { class: "side" }, ...pictures, make("figure", {}, map, name)));
  show();
}

// A layer's weights: a row asks; its values, weighted, add up to what the head passes on.
function matrix() {
  const state = { layer: data.layer, head: data.head, positions: 1, mask: 1, row: data.tokens.length - 1 };
  const table = make("table", { class: "grid" }), sum = make("div", { "aria-live": "polite" });
  const length = data.tokens.length, wide = data.width;
  function show() {
    const held = table.contains(document.activeElement);
    const found = data.cases[2 * state.positions + state.mask][state.layer][state.head];
    const weight = (row, column) => found.weights[row * length + column] / 100;
    const choose = row => { if (row !== state.row) { state.row = row; show(); } };
    const rows = data.tokens.map((token, row) => {
      const line = make("tr", { tabindex: row === state.row ? 0 : -1, "aria-selected": row === state.row,
        onpointerenter: event => event.pointerType === "mouse" && choose(row), onclick: () => choose(row),
        onkeydown: event => {
          const to = { ArrowDown: row + 1, ArrowUp: row - 1 }[event.key];
          if (to === undefined) return;
          event.preventDefault();
          choose(Math.min(Math.max(to, 0), length - 1));
        } }, make("th", { scope: "row" }, token));
      for (let column = 0; column < length; column++) {
        const share = weight(row, column), cell = make("td", {}, share >= .05 ? String(Math.round(100 * share)) : "");
        cell.style.background = css(blue(share));
        cell.style.color = share > .5 ? "#fff" : "#222";
        line.append(cell);
      }
      return line;
    });
    table.replaceChildren(make("tr", {}, make("th"), ...data.tokens.map(token => make("th", { scope: "col" }, token))), ...rows);
    const values = data.tokens.map((_, token) => found.values.slice(token * wide, (token + 1) * wide).map(value => value / 100));
    const total = values[0].map((_, i) => values.reduce((all, value, token) => all + weight(state.row, token) * value[i], 0));
    const lines = data.tokens.map((token, i) => [token, weight(state.row, i), values[i]]).filter(([, share]) => share >= .005);
    sum.replaceChildren(make("h2", {}, say.adds_up.replace("{word}", data.tokens[state.row])), make("table", {},
      make("tr", {}, ...[say.weight, say.of_value, say.product].map(text => make("th", { scope: "col" }, text))),
      ...lines.map(([token, share, value]) => make("tr", {}, make("td", {}, `${token} ${percent(share)}`),
        make("td", {}, strip(value)), make("td", {}, strip(value.map(each => share * each))))),
      make("tr", {}, make("th", { colspan: 2, scope: "row" }, say.sum), make("td", {}, strip(total)))));
    if (held) rows[state.row].focus();
  }
  const set = name => value => { state[name] = Number(value); show(); };
  const counted = (name, count) => Array.from({ length: count }, (_, i) => String(i + 1));
  root.append(choice(say.layer, counted("", data.cases[3].length), state.layer, set("layer")),
    choice(say.head, counted("", data.cases[3][0].length), state.head, set("head")),
    make("fieldset", {}, tick(say.positions, true, set("positions")), tick(say.mask, true, set("mask"))),
    make("div", { class: "side" }, make("div", { class: "scroll fit" }, table), sum));
  show();
}

// Click a place: its row. Click a word: its column.
function places() {
  const [height, width] = data.grid, state = { place: data.place, word: -1 };
  const bars = make("div", { "aria-live": "polite" }), name = make("figcaption", { "aria-live": "polite" });
  const share = (word, place) => data.maps[word][place] / 1000;
  const grid = make("div", { class: "places", role: "group", "aria-label": say.places });
  grid.style.gridTemplateColumns = `repeat(${width}, 1fr)`;
  const squares = Array.from({ length: height * width }, (_, place) => make("button", {
    type: "button", "aria-label": say.place.replace("{row}", Math.floor(place / width) + 1).replace("{column}", place % width + 1),
    onclick: () => { state.place = place; show(); },
    onkeydown: event => {
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width }[event.key], to = place + by;
      if (by === undefined || !squares[to]) return;
      event.preventDefault();
      state.place = to;
      show();
      squares[to].focus();
    } }));
  grid.append(...squares);
  const buttons = data.tokens.map((token, word) => make("button", { type: "button", onclick: () => {
    state.word = state.word === word ? -1 : word;
    show();
  } }, token));
  function show() {
    const most = state.word < 0 ? 1 : Math.max(...data.maps[state.word]) / 1000;
    squares.forEach((square, place) => {
      square.tabIndex = place === state.place ? 0 : -1;
      square.setAttribute("aria-pressed", place === state.place);
      const part = state.word < 0 ? 0 : share(state.word, place) / most;
      square.style.background = part ? `rgb(${hot(part).map(Math.round).join(" ")} / ${Math.round(75 * part)}%)` : "none";
    });
    buttons.forEach((button, word) => button.setAttribute("aria-pressed", word === state.word));
    bars.replaceChildren(...data.tokens.map((token, word) => bar(token, share(word, state.place), `${(100 * share(word, state.place)).toFixed(1)} %`)));
    name.textContent = state.word < 0 ? say.none : say.read.replace("{word}", data.tokens[state.word]);
  }
  root.append(make("fieldset", {}, make("legend", {}, say.word), ...buttons), make("div", { class: "side" },
    make("figure", {}, make("div", { class: "stage" }, make("img", { src: data.picture, alt: data.prompt }), grid), name), bars));
  show();
}

// The blocks of the UNet; those that read the text can be cut.
function unet() {
  const state = { cut: "", block: data.blocks.findIndex(block => block.cut) };
  const shown = picture(data.pictures[""].picture, ""), features = picture(data.blocks[0].features, "");
  const map = make("div", { class: "map", role: "group", "aria-label": say.blocks }), levels = (data.blocks.length - 1) / 2;
  map.style.gridTemplateColumns = `repeat(${data.columns}, minmax(0, 1fr))`;
  const buttons = data.blocks.map((block, number) => {
    const button = make("button", { type: "button", class: block.cut ? "reads" : "", onclick: () => {
      state.block = number;
      state.cut = state.cut === block.cut || !block.cut ? "" : block.cut;
      show();
    } }, `${block.name} ${block.grid} x ${block.grid}`);
    button.style.gridColumn = block.column;
    button.style.gridRow = block.row;
    button.style.setProperty("--row", block.row - 1);
    return button;
  });
  map.append(...buttons);
  function show() {
    const found = data.pictures[state.cut], block = data.blocks[state.block];
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", data.blocks[number].cut !== "" && (state.cut === data.blocks[number].cut || state.cut === "all")));
    shown.firstChild.src = found.picture;
    shown.lastChild.textContent = state.cut === "" ? say.uncut : say.changed.replace("{by}", found.by);
    features.firstChild.src = block.features;
    features.lastChild.textContent = say.features.replace("{block}", block.name).replace("{weights}", block.weights);
  }
  root.append(map, make("fieldset", {}, make("button", { type: "button", id: "all", onclick: () => { state.cut = "all"; show(); } }, say.all_cut),
    make("button", { type: "button", id: "none", onclick: () => { state.cut = ""; show(); } }, say.uncut)),
    make("div", { class: "side", "aria-live": "polite" }, shown, features));
  show();
}

// What a table of scores takes, whole and tile by tile.
function cost() {
  const state = { places: 12, heads: 3, tokens: 6, bytes: 2 }, out = make("div", { "aria-live": "polite" });
  const size = bytes => bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
  function show() {
    const n = 2 ** state.places, heads = 2 ** state.heads, t = 2 ** state.tokens, each = data.bytes[state.bytes];
    const lines = [[say.own, n, n], [say.cross, n, t], [say.tiles, Math.min(n, data.tile[0]), Math.min(n, data.tile[1])]];
    const most = Math.max(...lines.map(([, rows, columns]) => rows * columns));
    out.replaceChildren(...lines.map(([name, rows, columns]) =>
      bar(name, rows * columns / most, size(heads * rows * columns * each))));
  }
  const power = value => String(2 ** value);
  const set = name => value => { state[name] = value; show(); };
  root.append(slider(say.n, 6, 14, state.places, power, set("places")), slider(say.t, 3, 8, state.tokens, power, set("tokens")),
    slider(say.heads, 0, 4, state.heads, power, set("heads")), choice(say.type, data.types, state.bytes, set("bytes")), out);
  show();
}

// Beam search: the beginnings that are kept at each length; one of them, and what may follow.
function beam() {
  const state = { beams: 2, at: null }, tree = make("div", { class: "tree" }), next = make("div", { "aria-live": "polite" });
  function show() {
    const columns = data.searches[state.beams];
    tree.replaceChildren(...columns.map((texts, length) => make("ol", {}, ...texts.map(({ text, score }, row) => make("li", {},
      make("button", { type: "button", "aria-pressed": state.at === `${length} ${row}`, onclick: event => {
        state.at = `${length} ${row}`;
        show();
        tree.children[length].children[row].firstChild.focus();
      } }, text || "<", make("small", {}, (score / 10).toFixed(1))))))));
    const [length, row] = (state.at ?? "0 0").split(" ").map(Number), chosen = columns[length]?.[row];
    if (!chosen) return next.replaceChildren();
    const after = data.next[chosen.text];
    next.replaceChildren(make("h2", {}, (after ? say.next : say.ended).replace("{text}", chosen.text || "<")),
      ...(after ? [...data.letters].map((letter, i) => bar(letter, after[i] / 1000, `${(after[i] / 10).toFixed(1)} %`)) : []));
  }
  root.append(slider(say.beams, 1, data.searches.length, state.beams + 1, String, value => { Object.assign(state, { beams: value - 1, at: null }); show(); }), tree, next);
  show();
}

({ hand, steps, matrix, places, unet, cost, beam })[kind]();
root.hidden = document.getElementById("how").hidden = false;
document.getElementById("still").open = false;
