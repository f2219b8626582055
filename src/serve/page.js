"use strict";

// The page of `step1x-edit serve`: one picture, one instruction, the result beside it. It asks this server alone.

const at = (id) => document.getElementById(id);
const show = (id, shown) => { at(id).hidden = !shown; };
const FIELDS = ["seed", "steps", "cfg_scale", "size_level", "negative_prompt", "output_format"];
const SMALL = 320; // pixels of a side; smaller pictures are enlarged

let picture = null; // the file that is edited
let pictureUrl = null;
let result = null; // {blob, url, prompt, seed, seconds, input, inputUrl} that is shown
let running = null; // AbortController of the request under way
let offered = null; // what the server says of itself
const past = [];

function headers() {
  const key = at("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function hello() {
  try {
    const answer = await fetch("/version", { headers: headers() });
    if (answer.status === 401) return show("key-field", true);
    if (!answer.ok) return;
    offered = await answer.json();
    at("model").textContent = [offered.model, ...offered.devices].join(" · ");
    at("steps").placeholder = offered.defaults.steps;
  } catch { /* The first edit will say that nobody answers. */ }
}

function fail(message, field) {
  at("error").textContent = message;
  show("error", Boolean(message));
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  const input = field && at(field === "num_inference_steps" ? "steps" : field);
  if (!message || !input) return;
  input.setAttribute("aria-invalid", "true");
  if (at("settings").contains(input)) at("settings").open = true;
  input.focus();
}

function split(percent) {
  at("frame").style.setProperty("--at", `${percent}%`);
}

function view(inputUrl, resultUrl, caption) {
  show("drop", false);
  show("view", true);
  at("before").src = inputUrl;
  for (const id of ["after", "line", "slider"]) show(id, Boolean(resultUrl));
  if (resultUrl) at("after").src = resultUrl;
  at("caption").textContent = caption;
}

function take(file) {
  if (running || !file) return;
  if (!file.type.startsWith("image/") && !/\.(jxl|tiff?)$/i.test(file.name || "")) {
    return fail(`${file.name || "This"} is no picture.`);
  }
  fail("");
  picture = file;
  pictureUrl = URL.createObjectURL(file);
  result = null;
  show("further", false);
  show("save", false);
  at("status").textContent = "";
  view(pictureUrl, null, file.name || "");
  mark();
  at("prompt").focus();
}

function shown(entry) {
  result = entry;
  picture = entry.input;
  pictureUrl = entry.inputUrl;
  at("prompt").value = entry.prompt;
  view(entry.inputUrl, entry.url, `Seed ${entry.seed}, ${entry.seconds.toFixed(1)} s`);
  at("slider").value = 50;
  split(50);
  at("save").href = entry.url;
  at("save").download = `edited-${entry.seed}.${entry.blob.type.split("/")[1]}`;
  show("save", true);
  show("further", true);
  mark();
}

function mark() {
  for (const entry of past) entry.button.setAttribute("aria-current", String(entry === result));
}

function remember(entry) {
  const [item, button, image, text] = ["li", "button", "img", "span"].map((name) => document.createElement(name));
  button.type = "button";
  image.src = entry.url;
  image.alt = "";
  text.textContent = entry.prompt;
  button.append(image, text);
  button.addEventListener("click", () => { if (!running) shown(entry); });
  item.append(button);
  at("history").prepend(item);
  entry.button = button;
  past.push(entry);
  show("past", true);
}

function bytes(base64, format) {
  const text = atob(base64);
  return new Blob([Uint8Array.from(text, (letter) => letter.charCodeAt(0))], { type: `image/${format}` });
}

// Events and comments of an answer, as they come.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", end; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const block = rest.slice(0, end);
      rest = rest.slice(end + 2);
      if (block.startsWith(": ")) yield { comment: block.slice(2) };
      else yield JSON.parse(block.slice(block.indexOf("\ndata: ") + 7));
    }
  }
}

function progress(comment) {
  const [, step, steps] = comment.match(/^step (\d+)\/(\d+)$/) || [];
  if (!steps) return comment.startsWith("waiting") ? "Waiting for its turn" : null;
  at("progress").value = step / steps;
  return step === "0" ? "Reading the picture" : step === steps ? "Finishing" : `Step ${step} of ${steps}`;
}

async function edit() {
  const form = new FormData();
  form.append("prompt", at("prompt").value);
  for (const name of FIELDS) if (at(name).value.trim()) form.append(name, at(name).value.trim());
  form.append("stream", "true");
  form.append("partial_images", "2");
  form.append("image", picture);
  const [prompt, input, inputUrl, since] = [at("prompt").value, picture, pictureUrl, performance.now()];
  const answer = await fetch("/v1/images/edits", { method: "POST", headers: headers(), body: form, signal: running.signal });
  if (!answer.ok) throw (await answer.json()).error;
  let says = "Waiting for its turn";
  const clock = setInterval(() => {
    at("status").textContent = `${says}, ${((performance.now() - since) / 1000).toFixed(0)} s`;
  }, 200);
  try {
    for await (const event of events(answer.body)) {
      if (event.comment) says = progress(event.comment) ?? says;
      else if (event.type === "error") throw event.error;
      else if (event.type.endsWith("partial_image")) {
        view(inputUrl, URL.createObjectURL(bytes(event.b64_json, event.output_format)), "On the way");
        split(0);
        for (const id of ["line", "slider"]) show(id, false);
      } else if (event.type.endsWith("completed")) {
        const blob = bytes(event.b64_json, event.output_format);
        const seconds = (performance.now() - since) / 1000;
        const entry = { blob, url: URL.createObjectURL(blob), prompt, seed: event.seed, seconds, input, inputUrl };
        remember(entry);
        shown(entry);
        at("status").textContent = event.warnings.map((warning) => `Note: ${warning}.`).join(" ") || "Done.";
        return;
      }
    }
    throw { message: "The connection broke off before the result came." };
  } finally {
    clearInterval(clock);
  }
}

async function start(event) {
  event?.preventDefault();
  if (running) return;
  fail("");
  if (!picture) return fail("Choose a picture first.", "file");
  if (!at("prompt").value.trim()) return fail("Say what to change.", "prompt");
  running = new AbortController();
  busy(true);
  at("progress").value = 0;
  at("status").textContent = "Sending the picture";
  try {
    await edit();
  } catch (error) {
    const stopped = error.name === "AbortError";
    at("status").textContent = stopped ? "Stopped." : "";
    view(pictureUrl, result?.url, at("caption").textContent);
    if (error.code === "invalid_api_key") show("key-field", true);
    const text = error instanceof TypeError ? "The server does not answer." : `${error.message}`;
    const sentence = text.charAt(0).toUpperCase() + text.slice(1).replace(/[.]?$/, ".");
    if (!stopped) fail(sentence, error.code === "invalid_api_key" ? "key" : error.param);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(is) {
  at("start").disabled = is;
  show("stop", is);
  show("progress", is);
  if (is) at("stop").focus();
  else if (document.activeElement === document.body) at("prompt").focus();
}

at("form").addEventListener("submit", start);
at("form").addEventListener("input", () => fail(""));
at("stop").addEventListener("click", () => running?.abort());
at("file").addEventListener("change", () => { take(at("file").files[0]); at("file").value = ""; });
at("slider").addEventListener("input", () => split(at("slider").value));
at("before").addEventListener("load", () => {
  at("frame").classList.toggle("small", Math.max(at("before").naturalWidth, at("before").naturalHeight) < SMALL);
});
at("before").addEventListener("error", () => { at("caption").textContent += " (this browser cannot show it)"; });
at("further").addEventListener("click", () => take(new File([result.blob], at("save").download, { type: result.blob.type })));
at("key").addEventListener("change", hello);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start(event);
  if (event.key === "Escape") running?.abort();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); at("stage").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); at("stage").classList.remove("over"); });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
hello();
