"use strict";

const KEPT = 12; // predictions on the page
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

function report(text) {
  status.textContent = text;
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1).replace(".0", "")} MB`;
}

// Why these files cannot be sent, or an empty text.
function problemWith(files) {
  if (files.length > limits.files) return `${files.length} images are too many; the limit is ${limits.files} at a time.`;
  const large = files.find((file) => file.size > limits.bytes);
  if (large) return `${large.name} has ${megabytes(large.size)}; the limit is ${megabytes(limits.bytes)}.`;
  const all = files.reduce((sum, file) => sum + file.size, 0);
  if (all > limits.requestBytes) return `The images have ${megabytes(all)} in total; the limit is ${megabytes(limits.requestBytes)}.`;
  return "";
}

async function predict(files) {
  if (!files.length) return;
  const problem = problemWith(files);
  if (problem) return report(problem);
  report(files.length === 1 ? `Predicting ${files[0].name} …` : `Predicting ${files.length} images …`);
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name || "pasted image");
  try {
    const response = await fetch("predict?explain=true&top=5", { method: "POST", body: form });
    const answer = await response.json();
    if (!answer.images) return report(`The request failed: ${answer.detail || response.status}.`);
    show(answer.images.map((image, index) => card(image, files[index])));
    report(summary(answer.images));
  } catch {
    report("The images could not be sent. Check that none is a folder, and that the service is running.");
  }
}

function inWords(image) {
  const doubt = image.in_distribution === false ? ", but unlike anything the network was trained on" : "";
  return image.predictions[0].class_name + doubt;
}

function summary(images) {
  if (images.length === 1) return `${images[0].file}: ${images[0].error || inWords(images[0])}`;
  const unreadable = images.filter((image) => image.error).length;
  const predicted = images.length - unreadable;
  const unlike = images.filter((image) => image.in_distribution === false).length;
  return `${predicted} image${predicted === 1 ? "" : "s"} predicted${unreadable ? `, ${unreadable} could not be read` : ""}${unlike ? `, ${unlike} unlike anything the network was trained on` : ""}.`;
}

function show(added) {
  cards.prepend(...added);
  while (cards.children.length > Math.max(KEPT, added.length)) cards.lastElementChild.remove();
  results.hidden = false;
}

function card(image, file) {
  const made = document.getElementById("card").content.cloneNode(true).firstElementChild;
  made.querySelector("h3").textContent = image.error ? image.file : `${image.predictions[0].class_name}: ${image.file}`;
  if (image.error) {
    made.querySelector(".versions").remove();
    made.querySelector(".bars").remove();
    const error = made.querySelector(".error");
    error.textContent = image.error;
    error.hidden = false;
  } else {
    showVersions(made, image, file);
    made.querySelector(".unlike").hidden = image.in_distribution !== false; // null if it is unknown
    made.querySelector(".bars").append(...image.predictions.map(bar));
  }
  return made;
}

function showVersions(card, image, file) {
  const original = card.querySelector(".original");
  const url = URL.createObjectURL(file);
  original.addEventListener("error", () => original.closest("figure").remove(), { once: true }); // the browser does not know the format
  for (const event of ["load", "error"]) original.addEventListener(event, () => URL.revokeObjectURL(url), { once: true });
  original.src = url;
  original.alt = image.file;
  const pixels = card.querySelector(".pixels");
  pixels.alt = `${image.file} in ${size}×${size} pixels`;
  const heatmap = card.querySelector(".heatmap");
  if (!image.explanation) { // a network of the user's own may have no heatmaps
    for (const version of [pixels, heatmap]) version.closest("figure").remove();
    return;
  }
  heatmap.setAttribute("aria-label", `Heatmap of ${image.predictions[0].class_name}`);
  pixels.addEventListener("load", () => drawHeatmap(heatmap, pixels, image.explanation.heatmap), { once: true });
  pixels.src = `data:image/png;base64,${image.explanation.pixels}`;
}

// The image, darkened where nothing supports the class.
function drawHeatmap(canvas, image, heatmap) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, size, size);
  const shade = document.createElement("canvas");
  shade.width = heatmap[0].length;
  shade.height = heatmap.length;
  const pixels = new ImageData(shade.width, shade.height);
  heatmap.flat().forEach((value, index) => pixels.data.set([0, 0, 0, 225 * (1 - value)], 4 * index));
  shade.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(shade, 0, 0, size, size); // smooth scaling
}

function bar({ class_name: className, probability }) {
  const item = document.createElement("li");
  const [name, track, fill, share] = Array.from({ length: 4 }, () => document.createElement("span"));
  name.textContent = className;
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
  input.value = ""; // allows choosing the same file again
});
document.getElementById("clear").addEventListener("click", () => {
  cards.replaceChildren();
  results.hidden = true;
  report("");
  input.focus();
});

// On the whole page: a file dropped beside the field would replace the page.
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
  else report("There is no image in the clipboard.");
});
