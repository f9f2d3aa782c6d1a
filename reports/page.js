"use strict";

// Tables: a click on a header sorts ascending, then descending, then resets.

const NEXT = { null: "ascending", ascending: "descending", descending: null };
const collator = new Intl.Collator("en", { numeric: true });

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.querySelectorAll("th:has(> button)")];
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const order = NEXT[header.getAttribute("aria-sort")];
    for (const each of headers) each.removeAttribute("aria-sort");
    if (order) header.setAttribute("aria-sort", order);
    table.classList.toggle("sorted", order !== null);
    body.append(...(order ? sorted(original, column, order) : original));
  }));
}

function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  return rows
    .map((row) => [sortKey(row.cells[column]), row])
    // What has no value is last either way.
    .sort(([a], [b]) => (a === null) - (b === null) || sign * compare(a, b))
    .map(([, row]) => row);
}

function sortKey({ tagName, dataset, textContent }) {
  if (tagName === "TH") return textContent;
  return dataset.value === "" ? null : Number(dataset.value);
}

function compare(a, b) {
  return typeof a === "string" ? collator.compare(a, b) : a - b;
}

// Columns of labels stick beside the ones before, and names of groups beside all of them.

const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    let left = 0;
    target.querySelectorAll("thead .label").forEach((label, place) => {
      left += label.getBoundingClientRect().width;
      target.style.setProperty(`--left-${place + 1}`, `${left}px`);
    });
    target.style.setProperty("--labels", `${left}px`);
  }
});
for (const table of document.querySelectorAll("table")) widths.observe(table);

// Figures: a click enlarges one; wheel, buttons and keys zoom, dragging moves it.

const LARGEST = 16;
const STEP = 1.25;
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
const picture = stage.querySelector("img");
const view = { scale: 1, x: 0, y: 0 };

const actions = {
  in: () => zoom(STEP),
  out: () => zoom(1 / STEP),
  fit: () => show(1, 0, 0),
  close: () => dialog.close(),
};
const keys = { "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.fit };

// x and y, in pixels, are how far the picture's centre is from the stage's.
function show(scale, x, y) {
  const within = (size, room) => Math.max(0, (size * scale - room) / 2);
  const reachX = within(picture.offsetWidth, stage.clientWidth);
  const reachY = within(picture.offsetHeight, stage.clientHeight);
  view.scale = scale;
  view.x = Math.min(Math.max(x, -reachX), reachX);
  view.y = Math.min(Math.max(y, -reachY), reachY);
  picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${scale})`;
  dialog.querySelector("output").value = `${Math.round(100 * scale)} %`;
}

// The point of the picture at x, y, counted from the stage's centre, stays where it is.
function zoom(factor, x = 0, y = 0) {
  const scale = Math.min(Math.max(view.scale * factor, 1), LARGEST);
  const change = scale / view.scale;
  show(scale, x - (x - view.x) * change, y - (y - view.y) * change);
}

for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    const { src, alt, naturalWidth, naturalHeight } = button.firstElementChild;
    picture.src = src;
    picture.alt = alt;
    picture.style.setProperty("--ratio", naturalWidth / naturalHeight);
    dialog.querySelector("p").textContent = alt;
    dialog.showModal();
    show(1, 0, 0);
  });
}

for (const button of dialog.querySelectorAll("button")) {
  button.addEventListener("click", actions[button.value]);
}

dialog.addEventListener("keydown", (event) => keys[event.key]?.());

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { left, top, width, height } = stage.getBoundingClientRect();
  const factor = STEP ** (-event.deltaY / 100);
  zoom(factor, event.clientX - left - width / 2, event.clientY - top - height / 2);
}, { passive: false });

stage.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointermove", (event) => {
  if (stage.hasPointerCapture(event.pointerId)) {
    show(view.scale, view.x + event.movementX, view.y + event.movementY);
  }
});

new ResizeObserver(() => show(view.scale, view.x, view.y)).observe(stage);
