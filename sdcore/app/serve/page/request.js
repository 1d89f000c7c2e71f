// --- a request: the form as a job, sent, and what is told of it -----------------------------------

let task = null, running = null;
let source = null;      // {name, content}: the picture that is begun from
let base = null;        // {prompt, seed}: whose noise and layout changes of words keep
let scales = {};        // word -> how much it counts
let regions = [];       // {prompt, box}: left, top, right, bottom as parts of the picture
let loras = [];         // {name, unet, text, ...}
let rest = {};          // fields of a job that was read for which the page has nothing to turn
let linked = null;      // what a link asks for, until something is changed
let current = null;     // of past, what is shown
let past = [];          // {prompt, png, job, words, star, asked, pictures}
let notice = "";        // to be said behind "done"
let knowBreak = [];     // dialects in which there can be regions

const token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("token");
const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

// A seed may have more digits than a number has here: it is text until it is sent. Quotes within
// texts are written \" in JSON, so that no prompt is taken for one.
const parsed = text => JSON.parse(text.replace(/"seed": ?(\d+)/g, '"seed":"$1"'));
const written = value => JSON.stringify(value).replace(/"seed":"(\d+)"/g, '"seed":$1');

function number(id) { return $(id).value.trim() === "" ? null : Number($(id).value); }

function asJob() {
  const job = { ...rest, prompt: $("prompt").value.trim(), dialect: $("dialect").value };
  if ($("negative").value.trim()) job.negative_prompt = $("negative").value.trim();
  for (const [name, id] of [["steps", "steps"], ["guidance_scale", "guidance"], ["width", "width"], ["height", "height"]])
    if (number(id) !== null) job[name] = number(id);
  if ($("seed").value.trim()) job.seed = $("seed").value.trim();
  if ((job.width === undefined) !== (job.height === undefined)) { job.width ??= job.height; job.height ??= job.width; }
  const interval = [number("guided-from") ?? 0, number("guided-to") ?? 1];
  if (interval[0] !== 0 || interval[1] !== 1) job.guidance_interval = interval;
  if ($("method").value) job.scheduler = `${$("method").value} ${$("schedule").value}`.trim();
  const boxed = regions.filter(each => each.prompt.trim());
  if (boxed.length) job.regions = boxed.map(each => ({ ...each, prompt: each.prompt.trim() }));
  if (loras.length) job.loras = loras.map(each => ({ ...each }));
  if (source) {
    job.source = { image: "begun", strength: Number($("strength").value) };
    if (hasMask()) {
      job.source.mask = "mask";
      if ($("only-masked").checked) job.source.only_masked = 32;
    }
  }
  return job;
}

function changed() { return Object.keys(scales).some(word => scales[word] !== 1); }

function request(job, keep) {
  const body = { job, model: $("model").value || null, heatmaps: true, images: keep ? 1 : number("images") || 1 };
  if (keep) body.draft = true; // seen at once, and then painted whole
  if (source) body.pictures = { begun: source.content };
  if (job.source?.mask) body.pictures.mask = maskPicture();
  if (keep && base) body.job = { ...job, seed: job.seed ?? base.seed };
  if (keep && base && (base.prompt !== job.prompt || changed())) {
    body.job = { ...job, prompt: base.prompt, seed: base.seed };
    const reweight = Object.fromEntries(Object.entries(scales).filter(([, scale]) => scale !== 1));
    body.edit = { to: job.prompt, reweight };
  }
  return body;
}

async function paint(keep = false) {
  clearTimeout(soon);
  const job = asJob();
  if (!job.prompt) { tell(say("empty"), true); return; }
  const body = !keep && linked ? { ...linked, heatmaps: true } : request(job, keep);
  if (!keep && !linked) scales = {};
  linked = null;
  notice = "";
  if (body.job.regions && !knowBreak.includes(body.job.dialect) && knowBreak.length) {
    $("dialect").value = body.job.dialect = knowBreak[0];
    notice = say("turned")(knowBreak[0]);
  }
  const one = await send(body, keep);
  const dialect = $("other-dialect").value;
  if (!one || !dialect || dialect === body.job.dialect) return;
  const other = await send({ ...body, job: { ...body.job, seed: one.asked.job.seed, dialect }, images: 1 }, true);
  if (other) { show(one); compare(other, true); }
}

// Answers with what was painted last; null where nothing was, or another request came between.
async function send(body, keep) {
  await stop();
  const mine = running = new AbortController();
  let painted = null;
  $("stop").disabled = false;
  $("progress").removeAttribute("value");
  try {
    const answer = await fetch("api/paint", {
      method: "POST", signal: mine.signal, body: written(body),
      headers: { ...headers(), "content-type": "application/json" },
    });
    if (!answer.ok) { complain((await answer.json()).error); return null; }
    let last = "";
    for await (const [name, said] of events(answer.body)) if (mine === running) painted = happened((last = name), said, keep, body) ?? painted;
    if (mine === running && last !== "picture" && last !== "error") tell(say("lost"), true);
  } catch (error) {
    if (error.name !== "AbortError") tell(say("lost"), true);
  } finally {
    if (mine === running) { running = task = null; $("stop").disabled = true; $("progress").value = 0; }
    else painted = null;
  }
  return painted;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [name, data] = part.split("\n");
      yield [name.slice(7), parsed(data.slice(6))];
    }
  }
}

function happened(name, said, keep, body) {
  if (name === "queued") { task = said.id; tell(said.before > 0 ? say("waiting")(said.before) : ""); }
  if (name === "step") {
    $("progress").value = (said.index + 1) / said.count;
    tell(say("step")(said.index + 1, said.count));
    if (said.picture) { compare(null); showPicture(said.picture); draw(); }
  }
  if (name === "draft") showDraft(said, body);
  if (name === "picture") return keepNew(said, keep, body);
  if (name === "error") complain(said);
  return null;
}

function keepNew(said, keep, { job, edit, model, pictures }) {
  const { seed } = said.job;
  const asked = { job: { ...job, seed }, edit, model };
  const one = { prompt: said.job.prompt, png: said.png, job: said.job, words: said.words, star: false, asked, pictures };
  if (pictures) one.name = source?.name;
  past.unshift(one);
  const room = past.filter(each => !each.star).slice(60);
  past = past.filter(each => !room.includes(each));
  if (!keep) { base = { prompt: job.prompt, seed }; if ($("seed").value === "") $("seed").placeholder = seed; }
  if (!keep) pinNouns(one);
  show(one);
  keepPast();
  tell([say("done")(seed), notice, ...said.notes].filter(Boolean).join("; "));
  return one;
}

function showDraft({ picture, job, words }, { job: asked, edit, model, pictures }) {
  show({ prompt: job.prompt, picture, job, words, asked: { job: asked, edit, model }, pictures });
  tell(say("draft"));
}

function complain(error) { tell(`${error.what} ${error.why} ${error.hint}`, true); }

async function stop() {
  const old = running, id = task;
  running = task = null;
  $("stop").disabled = true;
  if (id) await fetch(`api/tasks/${id}/stop`, { method: "POST", headers: headers() }).catch(() => {});
  if (old) old.abort();
}

let soon = 0;
function later() { clearTimeout(soon); soon = setTimeout(() => paint($("live").checked), 100); }
