// --- a mask that is painted on the picture ---------------------------------------------------------

const MASK_SIDE = 1024, INK = "#e6550d";
const pad = $("mask").getContext("2d", { willReadFrequently: true });
let rubs = false, inked = false;

function hasMask() {
  const canvas = $("mask");
  if (!inked) return false;
  const { data } = pad.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 3; at < data.length; at += 4) if (data[at] > 127) return true;
  return false;
}

function maskPicture() { // white is painted anew
  const canvas = $("mask"), image = pad.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < image.data.length; at += 4) {
    const level = image.data[at + 3] > 127 ? 255 : 0;
    image.data.set([level, level, level, 255], at);
  }
  const copy = element("canvas", { width: canvas.width, height: canvas.height });
  copy.getContext("2d").putImageData(image, 0, 0);
  return copy.toDataURL("image/png").split(",")[1];
}

// The mask's canvas, over the picture that is begun from; none without a picture.
function ink() {
  if (!current && !source) return null;
  linked = null;
  if (!source) { source = { name: null, content: current.png ?? current.picture }; $("strength").value = 1; showBegun(); }
  const canvas = $("mask");
  if (!inked) {
    const { naturalWidth: w, naturalHeight: h } = $("picture"), part = Math.min(1, MASK_SIDE / Math.max(w, h));
    canvas.width = Math.round(w * part); canvas.height = Math.round(h * part);
    inked = true;
  }
  canvas.hidden = false;
  pad.globalCompositeOperation = rubs ? "destination-out" : "source-over";
  pad.strokeStyle = pad.fillStyle = INK;
  pad.lineCap = pad.lineJoin = "round";
  pad.lineWidth = Math.max(1, Number($("brush").value) / 100 * Math.max(canvas.width, canvas.height));
  return pad;
}

function showMaskTools() {
  $("mask-of").hidden = tool !== "mask" && !inked;
  $("mask").hidden = !inked;
}

function noMask() {
  inked = false;
  $("only-masked").checked = false;
  showMaskTools();
}

async function setMask(content) {
  const image = element("img", { src: `data:image/png;base64,${content}` });
  await image.decode();
  const canvas = $("mask");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  pad.drawImage(image, 0, 0);
  const data = pad.getImageData(0, 0, canvas.width, canvas.height);
  const rgb = [1, 3, 5].map(place => parseInt(INK.slice(place, place + 2), 16));
  for (let place = 0; place < data.data.length; place += 4) data.data.set([...rgb, data.data[place]], place);
  pad.putImageData(data, 0, 0);
  inked = true;
  showMaskTools();
}

$("mask-tool").addEventListener("click", () => takeUp("mask"));
$("rub").addEventListener("click", () => { rubs = !rubs; $("rub").setAttribute("aria-pressed", rubs); });
$("no-mask").addEventListener("click", noMask);
$("of-words").addEventListener("click", () => {
  const shown = pinned();
  if (!shown.length) { tell(say("nothing"), true); return; }
  const pen = ink();
  for (const index of shown) {
    const [h, w] = words[index].grid, wide = pen.canvas.width / w, high = pen.canvas.height / h;
    words[index].levels.forEach((level, place) => {
      if (level > 127) pen.fillRect(Math.floor(place % w * wide), Math.floor(Math.floor(place / w) * high), Math.ceil(wide), Math.ceil(high));
    });
  }
  showMaskTools();
});
$("stage").addEventListener("pointerdown", event => {
  if (tool !== "mask" || event.button !== 0) return;
  const pen = ink();
  if (!pen) return;
  event.preventDefault();
  let last = at(event);
  const line = to => {
    const next = at(to), { width, height } = pen.canvas;
    pen.beginPath();
    pen.moveTo(last[0] * width, last[1] * height);
    pen.lineTo(next[0] * width + 0.01, next[1] * height);
    pen.stroke();
    last = next;
  };
  line(event);
  follow(event, line, showMaskTools);
});
