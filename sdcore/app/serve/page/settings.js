// --- settings: of a picture that is dropped or a run that is shown again; LoRAs, learned words -----

const TURNED = ["prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "dialect", "scheduler", "guidance_interval", "regions", "loras", "source"];
const OF_THE_RUN = ["embeddings", "attention", "seed"]; // what a run fills in by itself

async function take(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const answer = await fetch("api/read", { method: "POST", body: bytes, headers: headers() }).catch(() => null);
  if (answer?.ok) {
    const said = parsed(await answer.text());
    fill(said.job);
    tell([say("read")(file.name, said.origin), ...said.differences].join("; "));
    return;
  }
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  linked = null;
  noMask();
  source = { name: file.name, content: btoa(text) };
  showBegun();
  showPicture(URL.createObjectURL(file));
}

function showBegun() {
  $("begun").hidden = source === null;
  if (source) $("begun-name").textContent = say("begins")(source.name ?? say("shown"));
}

function fill(job) {
  $("prompt").value = job.prompt;
  $("negative").value = job.negative_prompt ?? "";
  for (const [id, value] of [["seed", job.seed], ["steps", job.steps], ["guidance", job.guidance_scale], ["width", job.width], ["height", job.height]]) $(id).value = value ?? "";
  [$("guided-from").value, $("guided-to").value] = job.guidance_interval ?? [0, 1];
  $("dialect").value = job.dialect ?? "plain";
  fillSampler(job.scheduler ?? "");
  regions = (job.regions ?? []).map(each => ({ ...each }));
  loras = (job.loras ?? []).map(each => ({ ...each }));
  rest = Object.fromEntries(Object.entries(job).filter(([name, value]) => ![...TURNED, ...OF_THE_RUN].includes(name) && value !== null && value !== false && value !== 0));
  linked = null;
  showRegions();
  showLoras();
  showKept();
}

function fillSampler(name) {
  const options = id => [...$(id).options].map(option => option.value);
  const method = options("method").filter(each => each && (name === each || name.startsWith(`${each} `))).sort((a, b) => b.length - a.length)[0];
  const schedule = method ? name.slice(method.length).trim() : "";
  const whole = !name || (method && options("schedule").includes(schedule));
  if (!whole && !options("method").includes(name)) $("method").append(element("option", { value: name, textContent: name }));
  $("method").value = whole ? method ?? "" : name;
  $("schedule").value = whole ? schedule : "";
}

function showKept() {
  const names = Object.entries(rest).map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  $("kept").hidden = names.length === 0;
  $("kept-names").textContent = say("also")(names.join(", "));
}

function showLoras() {
  $("loras").replaceChildren(...loras.map((each, index) => {
    const name = element("span", { textContent: say("strong")(each.name, each.unet) });
    const range = element("input", { type: "range", min: -1, max: 2, step: 0.05, value: each.unet, aria: { label: say("strong")(each.name, each.unet) } });
    range.addEventListener("input", () => {
      each.unet = each.text = Number(range.value);
      name.textContent = say("strong")(each.name, each.unet);
      range.setAttribute("aria-label", name.textContent);
      linked = null;
    });
    range.addEventListener("change", () => { if (current) paint($("live").checked); });
    const away = element("button", { type: "button", textContent: "✕", aria: { label: say("away")(each.name) } });
    away.onclick = () => { loras.splice(index, 1); linked = null; showLoras(); $("lora").focus(); };
    return element("li", {}, name, range, away);
  }));
}

$("lora").addEventListener("change", () => {
  const name = $("lora").value;
  $("lora").value = "";
  if (!name || loras.some(each => each.name === name)) return;
  loras.push({ name, unet: 1, text: 1 });
  showLoras();
});
$("embedding").addEventListener("change", () => { $("learned").hidden = !$("embedding").value; });
$("put").addEventListener("click", () => {
  const counts = number("counts") ?? 1, prompt = $("prompt");
  if (!["a1111", "a1111-nonorm", "comfy"].includes($("dialect").value)) { // the others call no file by its name
    $("dialect").value = "a1111";
    tell(say("turned")("a1111"));
  }
  const name = ($("dialect").value === "comfy" ? "embedding:" : "") + $("embedding").value;
  const written = counts === 1 ? name : `(${name}:${counts})`;
  prompt.setRangeText(`${prompt.selectionStart ? " " : ""}${written} `, prompt.selectionStart, prompt.selectionEnd, "end");
  linked = null;
  prompt.focus();
});
$("let-go").addEventListener("click", () => { rest = {}; showKept(); });
$("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
document.addEventListener("dragover", event => { event.preventDefault(); $("stage").classList.add("drop"); });
document.addEventListener("dragleave", () => $("stage").classList.remove("drop"));
document.addEventListener("drop", event => {
  event.preventDefault();
  $("stage").classList.remove("drop");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
$("forget").addEventListener("click", () => { source = null; noMask(); showBegun(); $("file").value = ""; });
$("form").addEventListener("input", () => { linked = null; });
