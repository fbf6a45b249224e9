"use strict";

const KEPT = 12; // predictions that stay on the page
const limits = {
  files: Number(document.body.dataset.files),
  bytes: Number(document.body.dataset.bytes),
  requestBytes: Number(document.body.dataset.requestBytes),
};
const size = Number(document.body.dataset.size);
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const status = document.getElementById("status");
const results = document.getElementById("results");
const cards = document.getElementById("cards");

function say(words) {
  status.textContent = words;
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1).replace(".0", "")} MB`;
}

// Why these files cannot be sent, or nothing.
function refusal(files) {
  if (files.length > limits.files) return `${files.length} pictures are too many at once; ${limits.files} is the most.`;
  const large = files.find((file) => file.size > limits.bytes);
  if (large) return `${large.name} has ${megabytes(large.size)}; ${megabytes(limits.bytes)} is the most.`;
  const all = files.reduce((sum, file) => sum + file.size, 0);
  if (all > limits.requestBytes) return `Together they have ${megabytes(all)}; ${megabytes(limits.requestBytes)} is the most.`;
  return "";
}

async function predict(files) {
  if (!files.length) return;
  const refused = refusal(files);
  if (refused) return say(refused);
  say(files.length === 1 ? `Looking at ${files[0].name} …` : `Looking at ${files.length} pictures …`);
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name || "pasted picture");
  try {
    const response = await fetch("predict?explain=true&top=5", { method: "POST", body: form });
    const answer = await response.json();
    if (!answer.pictures) return say(`That did not work: ${answer.detail || response.status}.`);
    show(answer.pictures.map((picture, place) => card(picture, files[place])));
    say(summary(answer.pictures));
  } catch {
    say("They could not be sent. Is a folder among them, or has the service stopped?");
  }
}

function summary(pictures) {
  if (pictures.length === 1) return `${pictures[0].file}: ${pictures[0].error || pictures[0].predictions[0].label}`;
  const unread = pictures.filter((picture) => picture.error).length;
  const named = pictures.length - unread;
  return `${named} picture${named === 1 ? "" : "s"} named${unread ? `, ${unread} could not be read` : ""}.`;
}

function show(added) {
  cards.prepend(...added);
  while (cards.children.length > Math.max(KEPT, added.length)) cards.lastElementChild.remove();
  results.hidden = false;
}

function card(picture, file) {
  const made = document.getElementById("card").content.cloneNode(true).firstElementChild;
  made.querySelector("h3").textContent = picture.error ? picture.file : `${picture.predictions[0].label}: ${picture.file}`;
  if (picture.error) {
    made.querySelector(".views").remove();
    made.querySelector(".bars").remove();
    const words = made.querySelector(".error");
    words.textContent = picture.error;
    words.hidden = false;
  } else {
    showViews(made, picture, file);
    made.querySelector(".bars").append(...picture.predictions.map(bar));
  }
  return made;
}

function showViews(card, picture, file) {
  const original = card.querySelector(".picture");
  const address = URL.createObjectURL(file);
  original.addEventListener("error", () => original.closest("figure").remove(), { once: true }); // a format that browsers do not show
  for (const event of ["load", "error"]) original.addEventListener(event, () => URL.revokeObjectURL(address), { once: true });
  original.src = address;
  original.alt = picture.file;
  const seen = card.querySelector(".seen");
  seen.alt = `${picture.file} in ${size}×${size} pixels`;
  const heat = card.querySelector(".heat");
  heat.setAttribute("aria-label", `What spoke for ${picture.predictions[0].label}`);
  seen.addEventListener("load", () => drawHeat(heat, seen, picture.explanation.heat), { once: true });
  seen.src = `data:image/png;base64,${picture.explanation.seen}`;
}

// The picture, in the dark where nothing spoke for the class.
function drawHeat(canvas, image, heat) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, size, size);
  const shade = document.createElement("canvas");
  shade.width = heat[0].length;
  shade.height = heat.length;
  const pixels = new ImageData(shade.width, shade.height);
  heat.flat().forEach((value, place) => pixels.data.set([0, 0, 0, 225 * (1 - value)], 4 * place));
  shade.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(shade, 0, 0, size, size); // smoothly
}

function bar({ label, probability }) {
  const item = document.createElement("li");
  const [name, track, fill, share] = Array.from({ length: 4 }, () => document.createElement("span"));
  name.textContent = label;
  track.className = "track";
  fill.className = "fill";
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  share.className = "share";
  share.textContent = `${(100 * probability).toFixed(1)} %`;
  item.append(name, track, share);
  return item;
}

drop.addEventListener("submit", (event) => event.preventDefault());
input.addEventListener("change", async () => {
  await predict([...input.files]);
  input.value = ""; // so that the same file can be chosen again
});
document.getElementById("clear").addEventListener("click", () => {
  cards.replaceChildren();
  results.hidden = true;
  say("");
  input.focus();
});

// Anywhere on the page: a file that misses the field would replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  predict([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) predict(files);
  else say("There is no picture in the clipboard.");
});
