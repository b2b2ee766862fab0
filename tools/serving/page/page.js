"use strict";
// Titles and attributes come from a catalogue: they are set as text, never as HTML.

const part = (id) => document.getElementById(id);
const COUNT = 24;
let lastAsked = null; // asks the same again, when a filter changes
let latest = 0; // number of the newest question: answers to older ones are dropped

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function picture(id, title) {
  const image = make("img");
  image.src = `images/${encodeURIComponent(id)}`;
  image.alt = title || id;
  image.loading = "lazy";
  image.addEventListener("error", () => image.replaceWith(make("div", "blank")), { once: true });
  return image;
}

function attributes(values, others) {
  const row = make("div", "attributes");
  for (const [name, value] of Object.entries(values)) {
    const tag = make("span", others && others[name] === value ? "shared" : "", value);
    tag.title = `${name}: ${value}`;
    row.append(tag);
  }
  return row;
}

function options() {
  const query = new URLSearchParams({ k: COUNT });
  for (const choice of part("filters").querySelectorAll("select")) {
    if (choice.value) query.append("where", `${choice.name}=${choice.value}`);
  }
  return query;
}

function say(text, failed = false) {
  part("status").textContent = text;
  part("status").className = failed ? "error" : "";
}

async function read(address, request) {
  const response = await fetch(address, request);
  const body = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(body.error);
  return body;
}

// `ask` returns the answer; `head` are the nodes that show what was asked for; `own` are attributes to compare with.
async function show(ask, head, own) {
  const number = ++latest;
  lastAsked = () => show(ask, head, own);
  say("Searching …");
  try {
    const answer = await ask();
    if (number !== latest) return;
    part("asked").replaceChildren(...head);
    part("asked").hidden = head.length === 0;
    part("found").replaceChildren(...answer.items.map((item) => {
      const card = make("button", "card");
      card.type = "button";
      card.append(
        picture(item.id, item.title),
        make("span", "title", item.title || item.id),
        make("span", "score", item.score.toFixed(3)),
        attributes(item.attributes, own),
      );
      card.addEventListener("click", () => similar(item.id));
      const place = make("li");
      place.append(card);
      return place;
    }));
    say(answer.items.length ? `${answer.items.length} items, nearest first` : "No item fits these filters.");
  } catch (error) {
    if (number === latest) say(error.message, true);
  }
}

async function similar(id) {
  let item;
  try {
    item = await read(`items/${encodeURIComponent(id)}`);
  } catch (error) {
    say(error.message, true);
    return;
  }
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  const text = make("div");
  text.append(make("div", "title", item.title || id), make("div", "score", id), attributes(item.attributes));
  window.scrollTo({ top: 0 });
  await show(() => read(`similar?item=${encodeURIComponent(id)}&${options()}`), [picture(id, item.title), text], item.attributes);
}

function byPhoto(file) {
  const image = make("img");
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const ask = () => read(`search?${options()}`, { method: "POST", headers: { "Content-Type": type }, body: file });
  return show(ask, [image, make("div", "title", file.name)]);
}

async function byWords(words) {
  const known = await fetch(`items/${encodeURIComponent(words)}`);
  if (known.ok) return similar(words);
  const ask = () => read(`search?${options()}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text: words }),
  });
  return show(ask, [make("div", "title", `“${words}”`)]);
}

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = part("words").value.trim();
  if (words) byWords(words);
});
part("photo").addEventListener("change", (event) => {
  if (event.target.files.length) byPhoto(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) byPhoto(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target === document.body) {
    event.preventDefault();
    part("words").focus();
  }
  const cards = [...document.querySelectorAll(".card")];
  const at = cards.indexOf(document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && at >= 0 && cards[at + step]) cards[at + step].focus();
});

async function start() {
  try {
    const ready = await read("ready");
    part("about").textContent = `${ready.items} items, generation ${ready.generation}`;
    part("photo-label").hidden = !ready.image;
    if (!ready.text) part("words").placeholder = "The id of an item";
    for (const [name, values] of Object.entries(await read("filters"))) {
      const choice = make("select");
      choice.name = name;
      choice.setAttribute("aria-label", name);
      choice.append(new Option(`${name}: all`, ""), ...values.map((value) => new Option(value, value)));
      choice.addEventListener("change", () => lastAsked && lastAsked());
      part("filters").append(choice);
    }
  } catch (error) {
    say(error.message, true);
  }
  if (location.hash.length > 1) await similar(decodeURIComponent(location.hash.slice(1)));
}
start();
